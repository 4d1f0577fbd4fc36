//! `swamp-mount flush MOUNTPOINT`, `swamp-mount flush SOURCE [--cache-dir DIR]` and `swamp-mount flush --repo DIR`.
//!
//! Depends on `mount`. A name with a scheme is a source; a path, or what is mounted, a mountpoint; any other bare word a
//! bucket.

use std::path::Path;

use super::arguments::FlushArgs;
use super::target::{self, Target};
use super::{Ended, output, report_end};
use crate::config::{CacheConfig, ConfigError, EngineConfig, Environment, Invocation, StoreConfig};
use crate::mount::control::{Request, Response};
use crate::mount::{MountError, client, headless, instance};

pub fn run(args: &FlushArgs, environment: &Environment) -> Result<Ended, MountError> {
    let Some(given) = &args.target else { return flush_repo(args, environment) };
    match as_mountpoint(given, environment)? {
        Some(target) => flush_mount(&target),
        None => {
            let source = given.to_str().map(str::to_owned).ok_or_else(|| ConfigError::Source {
                text: given.to_string_lossy().into_owned(),
                reason: "it is not UTF-8".to_owned(),
            })?;
            let store = args.store.config(&Some(source), environment)?;
            flush_leftover(args, store, environment)
        }
    }
}

/// What is mounted of the repository's datastore; else what an ended mount of it left.
fn flush_repo(args: &FlushArgs, environment: &Environment) -> Result<Ended, MountError> {
    let store = args.store.config(&None, environment)?;
    let running = target::mounts_of(&store, environment)?;
    if running.is_empty() {
        return flush_leftover(args, store, environment);
    }
    for target in &running {
        flush_mount(target)?;
    }
    Ok(Ended::Done)
}

/// The target, if it means a mountpoint.
fn as_mountpoint(given: &Path, environment: &Environment) -> Result<Option<Target>, MountError> {
    let text = given.to_string_lossy();
    if text.contains("://") {
        return Ok(None);
    }
    let target = target::find(given, environment)?;
    let is_path = text.contains('/') || text.starts_with('.');
    Ok((target.running.is_some() || is_path).then_some(target))
}

fn flush_mount(target: &Target) -> Result<Ended, MountError> {
    let Some(known) = &target.running else { return Err(target.nobody()) };
    let progress = output::Progress::new();
    let answer = client::request(&known.record.cache_root, &Request::Flush, |pending, _| progress.update(&pending));
    progress.finish();
    match answer.map_err(|e| target.no_answer(&e))? {
        Response::Failed { message } => Err(MountError::Control(message)),
        _ => Ok(Ended::Done),
    }
}

fn flush_leftover(args: &FlushArgs, store: StoreConfig, environment: &Environment) -> Result<Ended, MountError> {
    let cache = CacheConfig::resolve(&store, args.cache_dir.as_deref(), Invocation::User, environment)?;
    let caches = roots_of(cache, environment);
    if caches.is_empty() {
        output::notice(&format!("nothing is kept on this machine for {store}"));
        return Ok(Ended::Done);
    }
    let engine = EngineConfig {
        upload_concurrency: args.upload_concurrency.unwrap_or(EngineConfig::default().upload_concurrency),
        unsafe_no_conditional_writes: args.unsafe_no_conditional_writes,
        ..EngineConfig::default()
    };
    let mut all = Ended::Done;
    for cache in &caches {
        let progress = output::Progress::new();
        let end = headless::flush(&store, cache, &engine, |pending| progress.update(&pending));
        progress.finish();
        if report_end(&end?) == Ended::Unpushed {
            all = Ended::Unpushed;
        }
    }
    Ok(all)
}

/// The cache roots with state of the source: the given one, else the default one and those that were given to mounts which
/// ended without pushing everything.
fn roots_of(cache: CacheConfig, environment: &Environment) -> Vec<CacheConfig> {
    let mut roots = Vec::new();
    if !cache.given {
        let left = target::known(environment).into_iter().filter(|known| known.holder.is_none());
        let left = left.filter(|known| known.record.identity == cache.identity).map(|known| known.record.cache_root);
        let is_default = |root: &Path| std::fs::canonicalize(&cache.root).is_ok_and(|default| default == root);
        roots.extend(left.filter(|root| !is_default(root)).map(|root| CacheConfig {
            root,
            given: true,
            ..cache.clone()
        }));
    }
    if cache.root.join(instance::SOURCE_NAME).exists() {
        roots.push(cache);
    }
    roots
}
