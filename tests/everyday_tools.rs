//! Promise: everyday tools work on a mount, and what they made is the same on another machine: names, bytes, symbolic
//! links, executable bits, modification times to the millisecond.

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use support::mount::Lab;

/// What of a file travels through the bucket.
#[derive(Debug, PartialEq)]
enum Found {
    File { bytes: Vec<u8>, executable: bool, mtime_ms: i64 },
    Symlink { target: std::path::PathBuf, mtime_ms: i64 },
}

/// Every synced file below a directory. Directories follow from them; empty ones stay on their machine.
fn tree(root: &Path) -> BTreeMap<String, Found> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let meta = path.symlink_metadata().unwrap();
            let mtime_ms = meta.mtime() * 1000 + meta.mtime_nsec().div_euclid(1_000_000);
            if meta.is_dir() {
                todo.push(path);
            } else if swamp_mount::datastore::is_internal(&name) {
                continue;
            } else if meta.is_symlink() {
                found.insert(name, Found::Symlink { target: std::fs::read_link(&path).unwrap(), mtime_ms });
            } else {
                let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
                found.insert(name, Found::File { bytes, executable: meta.permissions().mode() & 0o100 != 0, mtime_ms });
            }
        }
    }
    found
}

fn same(before: &BTreeMap<String, Found>, after: &BTreeMap<String, Found>) {
    let names = |tree: &BTreeMap<String, Found>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(after), names(before));
    for (name, there) in before {
        let here = &after[name];
        let brief = |found: &Found| match found {
            Found::File { bytes, executable, mtime_ms } => format!("{} bytes, {executable}, {mtime_ms}", bytes.len()),
            Found::Symlink { target, mtime_ms } => format!("-> {}, {mtime_ms}", target.display()),
        };
        assert!(here == there, "{name}: {} here, {} there", brief(here), brief(there));
    }
}

fn has(tool: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()))
}

/// Runs a shell script in a directory; `$LOCAL` is a directory outside the mount.
fn shell(script: &str, dir: &Path, local: &Path) {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(dir)
        .env("LOCAL", local)
        .envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_NOSYSTEM", "1"), ("CARGO_TERM_COLOR", "never")])
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_NAME"), "T")))
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_EMAIL"), "t@example.org")))
        .env_remove("CARGO_TARGET_DIR")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr));
}

/// Runs `script` on a fresh mount while a background flush pushes, with and without passthrough (where there is any), then
/// `check` on another machine with an empty cache.
fn works(tools: &[&str], script: &str, check: &str) {
    if let Some(missing) = tools.iter().find(|tool| !has(tool)) {
        eprintln!("skipped: {missing} is not installed");
        return;
    }
    const OPTIONS: [&str; 7] = ["--refresh", "1", "--flush-after", "1", "--flush-max-age", "2", "--passthrough"];
    for (lab, options) in [(Lab::s3(), &OPTIONS[..6]), (Lab::dir(), &OPTIONS[..])] {
        let local = tempfile::tempdir().unwrap();
        let machine = lab.machine();
        let mount = machine.mount_with(options);
        shell(script, &mount.path(""), local.path());
        let before = tree(&mount.path(""));
        same(&before, &tree(&mount.path("")));
        mount.flushed();
        let status = mount.status();
        assert_eq!(status["conflicts"].as_array().map(Vec::len), Some(0), "{status}");
        same(&before, &tree(&mount.path("")));
        assert_eq!(mount.unmount(), 0);

        let other = lab.machine();
        let mount = other.mount();
        same(&before, &tree(&mount.path("")));
        shell(check, &mount.path(""), local.path());
        assert_eq!(mount.unmount(), 0);
    }
}

#[test]
fn editors_that_rename_or_rewrite() {
    let script = r##"
        # sed -i, perl -i: a temporary file renamed over the old one.
        echo one > sed.txt; sed -i s/one/two/ sed.txt
        # vim, backupcopy=no: the old file is moved away, a new one made, the backup removed.
        echo old > vim-no.txt; chmod 755 vim-no.txt
        echo swap > .vim-no.txt.swp; mv vim-no.txt vim-no.txt~; echo new > vim-no.txt; chmod 755 vim-no.txt
        sync vim-no.txt; rm vim-no.txt~ .vim-no.txt.swp
        # vim, backupcopy=yes: a copy is the backup, the file is emptied and written.
        echo old > vim-yes.txt; cp -p vim-yes.txt vim-yes.txt~; echo new > vim-yes.txt; sync vim-yes.txt; rm vim-yes.txt~
        # vim tries whether it may write: a file called 4913.
        : > 4913; chmod 644 4913; rm 4913
        # emacs: a lock that is a dangling symbolic link, an auto-save file, a backup that stays.
        echo old > emacs.txt; ln -s me@host.1:1 .#emacs.txt; echo auto > '#emacs.txt#'
        mv emacs.txt emacs.txt~; echo new > emacs.txt; rm .#emacs.txt '#emacs.txt#'
        # gedit and most others: write a temporary file, sync it, rename it over, sync the directory.
        for i in 1 2 3 4 5; do echo "state $i" > .tmp.$i; sync .tmp.$i; mv .tmp.$i saved.txt; sync .; done
        # Appending, and emptying with a shell.
        for i in $(seq 200); do echo line $i >> log.txt; done; : > empty.txt
    "##;
    let check = r#"
        test "$(cat sed.txt vim-no.txt vim-yes.txt emacs.txt emacs.txt~ saved.txt | tr '\n' ,)" = 'two,new,new,new,old,state 5,'
        test -x vim-no.txt; test ! -x vim-yes.txt; test "$(wc -l < log.txt)" = 200; test ! -s empty.txt
        test "$(ls -A | wc -l)" = 8
    "#;
    works(&["sed"], script, check);
}

#[test]
fn git_from_init_to_gc_and_clone() {
    let script = r#"
        git init -q -b main repo; cd repo
        for i in $(seq 40); do mkdir -p dir$((i % 4)); echo $i > dir$((i % 4))/$i; done; ln -s dir1 link
        printf '#!/bin/sh\necho run\n' > run.sh; chmod +x run.sh
        git add .; git commit -qm one; test -z "$(git status --porcelain)"
        git checkout -qb side; echo side > side; git add side; git commit -qm side
        git checkout -q main; test ! -e side; echo main > main; git add main; git commit -qm main
        git merge -q -m merge side; git mv dir2 moved; git commit -qm moved; git tag v1; git stash list
        test -z "$(git status --porcelain)"; git gc -q --prune=now; git fsck --strict
        cd ..; git clone -q repo clone; test -z "$(git -C clone status --porcelain)"
        test "$(git -C clone log --format=%s | sort | tr '\n' ,)" = main,merge,moved,one,side,
    "#;
    // Empty directories stay on their machine, and git wants refs/, which gc has emptied; `git init` makes it again.
    let check = r#"
        for r in repo clone; do
            git init -q $r; git -C $r fsck --strict; test -z "$(git -C $r status --porcelain)"
        done
        test "$(repo/run.sh)" = run
    "#;
    works(&["git"], script, check);
}

#[test]
fn sqlite_in_wal_mode_with_two_writers() {
    let script = r#"
        sqlite3 t.db 'pragma journal_mode=wal; create table t(writer, n);' > /dev/null
        writer() { for n in $(seq 60); do sqlite3 -cmd '.timeout 30000' t.db "insert into t values($1, $n);"; done; }
        writer 1 & one=$!; writer 2 & two=$!
        for i in $(seq 20); do sqlite3 -cmd '.timeout 30000' t.db 'select count(*) from t' > /dev/null; done
        wait $one; wait $two
        test "$(sqlite3 t.db 'select count(*), count(distinct n), sum(writer) from t')" = '120|60|180'
        test "$(sqlite3 t.db 'pragma integrity_check')" = ok
        sqlite3 t.db 'pragma wal_checkpoint(truncate); pragma journal_mode=delete; vacuum' > /dev/null
    "#;
    works(
        &["sqlite3"],
        script,
        "test \"$(sqlite3 t.db 'select count(*) from t; pragma integrity_check')\" = \"120\nok\"",
    );
}

/// A local tree with what archives hold: many small files, long and odd names, modes, links, old times, a large file.
const SAMPLE: &str = r#"
    mkdir -p $LOCAL/in/deep/er/and/deeper "$LOCAL/in/odd names"; cd $LOCAL/in; echo x > deep/er/and/deeper/x
    for i in $(seq 300); do echo $i > deep/$i; touch -d "2020-01-01 00:00:$((i % 60)).123456789" deep/$i; done
    head -c 3000000 /dev/urandom > large; : > empty; truncate -s 1000000 sparse
    printf '#!/bin/sh\necho run\n' > run; chmod 755 run; chmod 600 large
    echo x > "odd names/with space, \"quotes\" and ünïcödé"; echo x > "odd names/$(printf 'n%.0s' $(seq 250))"
    ln -s deep/1 link; ln -s /nonexistent/absolute dangling; ln -s . self
    cd - > /dev/null
"#;

#[test]
fn tar_extracts_what_it_archived() {
    let script = format!(
        "{SAMPLE}
        tar cf $LOCAL/in.tar -C $LOCAL in; mkdir out; tar xf $LOCAL/in.tar -C out; tar df $LOCAL/in.tar -C out
        diff -r --no-dereference $LOCAL/in out/in; tar cf again.tar out"
    );
    works(&["tar", "diff"], &script, "diff -r --no-dereference $LOCAL/in out/in; tar xOf again.tar out/in/deep/1");
}

#[test]
fn rsync_and_cp_copy_once_and_find_nothing_to_do() {
    let script = format!(
        "{SAMPLE}
        rsync -a $LOCAL/in/ rs/; test -z \"$(rsync -ai $LOCAL/in/ rs/)\"
        echo changed > $LOCAL/in/deep/7; rm $LOCAL/in/deep/8
        test \"$(rsync -a --delete --out-format=%n $LOCAL/in/ rs/ | grep -v '/$' | tr '\\n' ,)\" = 'deleting deep/8,deep/7,'
        test -z \"$(rsync -ai --delete $LOCAL/in/ rs/)\"
        cp -a $LOCAL/in cp; diff -r --no-dereference cp rs; test -z \"$(rsync -ai cp/ rs/)\"
        mkdir back; rsync -a rs/ $LOCAL/back/; diff -r --no-dereference $LOCAL/in $LOCAL/back
        test $(find rs | wc -l) = $(find $LOCAL/in | wc -l); test $(find rs -type l | wc -l) = 3
        test $(du -s --apparent-size rs | cut -f1) -gt 3900"
    );
    let check = "diff -r --no-dereference $LOCAL/in rs
        rsync -rltin --omit-dir-times rs/ cp/ | tee $LOCAL/differ; test ! -s $LOCAL/differ";
    works(&["rsync", "diff", "find", "du"], &script, check);
}

#[test]
fn cargo_builds_in_the_mount() {
    let script = r#"
        cargo -q init --offline --vcs none --name tiny tiny; cd tiny
        cargo build -q --offline; test "$(target/debug/tiny)" = 'Hello, world!'
        touch src/main.rs; cargo build -q --offline; sed -i s/world/mount/ src/main.rs
        test "$(cargo run -q --offline)" = 'Hello, mount!'; cargo test -q --offline
    "#;
    works(&["cargo"], script, "test \"$(tiny/target/debug/tiny)\" = 'Hello, mount!'");
}

#[test]
fn many_small_files_and_a_python_environment() {
    let script = r#"
        python3 -m venv --without-pip env; env/bin/python -c 'import sys; assert sys.prefix.endswith("env")'
        python3 - <<'PY'
import json, os, shutil, tempfile
for p in range(60):
    d = f"node_modules/.staging/pkg{p}/lib"
    os.makedirs(d)
    for f in range(15):
        with open(f"{d}/{f}.js", "w") as out:
            out.write(f"module.exports = {f};\n")
    json.dump({"name": f"pkg{p}"}, open(f"node_modules/.staging/pkg{p}/package.json", "w"))
    os.rename(f"node_modules/.staging/pkg{p}", f"node_modules/pkg{p}")
os.rmdir("node_modules/.staging")
shutil.copytree("node_modules", "copy"); shutil.move("copy", "moved"); shutil.rmtree("node_modules/pkg7")
with tempfile.NamedTemporaryFile(dir=".") as scratch:
    scratch.write(b"x" * 100000); scratch.flush()
PY
        test $(find moved -type f | wc -l) = 960; test $(find node_modules -type f | wc -l) = 944
    "#;
    works(
        &["python3"],
        script,
        "test $(cat moved/*/lib/3.js | wc -l) = 60; test ! -e node_modules/pkg7; test -L env/bin/python3",
    );
}
