//! `swamp-mount namespaces SOURCE [--json]`.
//!
//! Depends on `datastore`. A directory of the bucket is a namespace when it is registered, and not by its looks.

use serde::Serialize;

use super::arguments::NamespacesArgs;
use super::transfer::block_on;
use super::{Ended, output};
use crate::config::Environment;
use crate::datastore::{Registration, list_namespaces};
use crate::mount::{MountError, store};

#[derive(Serialize)]
struct Report {
    namespaces: Vec<Registration>,
}

pub fn run(args: &NamespacesArgs, environment: &Environment) -> Result<Ended, MountError> {
    let config = args.store.config(&args.source, environment)?;
    let namespaces = block_on(async {
        let datastore = store::open(&config).await?;
        Ok::<_, MountError>(list_namespaces(&**datastore.bucket()).await?)
    })??;
    output::result(&if args.json { output::json(&Report { namespaces })? } else { describe(&namespaces) });
    Ok(Ended::Done)
}

fn describe(namespaces: &[Registration]) -> String {
    if namespaces.is_empty() {
        return "no namespaces\n".to_owned();
    }
    let line = |one: &Registration| {
        let by = one.repo_id.as_ref().map(|id| format!("  repository {id}")).unwrap_or_default();
        let at = one.registered_at.as_ref().map(|at| format!("  since {at}")).unwrap_or_default();
        format!("{}{by}{at}\n", one.namespace)
    };
    namespaces.iter().map(line).collect()
}
