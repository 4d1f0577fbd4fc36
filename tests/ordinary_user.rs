//! Promise: an ordinary user mounts through fusermount3, and git, SQLite and shared mappings work there as they do for root.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// As root, in a mount namespace of its own, where /dev/fuse is everybody's as on any desktop; then as the user that is named.
const PREPARE: &str = r#"
    mknod "$HOME_OF_USER/fuse" c 10 229; chmod 666 "$HOME_OF_USER/fuse"; mount --bind "$HOME_OF_USER/fuse" /dev/fuse
    exec setpriv --reuid 65534 --regid 65534 --clear-groups bash -euo pipefail -c "$AS_USER"
"#;

const AS_USER: &str = r#"
    cd "$HOME_OF_USER"; export HOME=$PWD XDG_STATE_HOME=$PWD/state GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
    trap '"$SWAMP_MOUNT" unmount --timeout 20 mnt >/dev/null 2>&1 || fusermount3 -uz mnt 2>/dev/null || true' EXIT
    "$SWAMP_MOUNT" --flush-after 1 --flush-max-age 1 "$SOURCE" mnt
    grep -q " $PWD/mnt fuse.*user_id=65534" /proc/self/mounts
    cd mnt
    if command -v git >/dev/null; then
        git init -q -b main repo; cd repo; for i in $(seq 20); do echo $i > $i; done; git add .
        git -c user.name=T -c user.email=t@example.org commit -qm one; git gc -q --prune=now; git fsck --strict
        test -z "$(git status --porcelain)"; cd ..
    fi
    if command -v sqlite3 >/dev/null; then
        sqlite3 t.db 'pragma journal_mode=wal; create table t(n);' >/dev/null
        writer() { for n in $(seq 30); do sqlite3 -cmd '.timeout 30000' t.db "insert into t values($1);"; done; }
        writer 1 & one=$!; writer 2 & two=$!; wait $one; wait $two
        test "$(sqlite3 t.db 'select count(*), sum(n) from t; pragma integrity_check')" = "$(printf '60|90\nok')"
    fi
    if command -v python3 >/dev/null; then
        python3 -c "
import mmap, os
f = open('mapped', 'w+b'); f.truncate(1 << 20)
m = mmap.mmap(f.fileno(), 0); m[4096:4102] = b'stored'; m.flush(); m.close()
f.seek(4096); assert f.read(6) == b'stored'"
    fi
    echo kept > kept; cd ..
    "$SWAMP_MOUNT" unmount mnt
    trap - EXIT
    ! grep -q " $PWD/mnt " /proc/self/mounts
"#;

#[test]
fn git_sqlite_and_mappings_work_through_fusermount3() {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "skipped: not root, so that no other user can be played (the other tests run as an ordinary user here)"
        );
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let open_to_all = |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::create_dir(home.path().join("mnt")).unwrap();
    open_to_all(home.path());
    open_to_all(&home.path().join("mnt"));
    std::os::unix::fs::chown(home.path().join("mnt"), Some(65534), Some(65534)).unwrap();
    let program = home.path().join("swamp-mount");
    std::fs::copy(env!("CARGO_BIN_EXE_swamp-mount"), &program).unwrap();
    let source = home.path().join("bucket");
    std::fs::create_dir(&source).unwrap();
    std::os::unix::fs::chown(&source, Some(65534), Some(65534)).unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "bash", "-euo", "pipefail", "-c", PREPARE])
        .env("AS_USER", AS_USER)
        .env("HOME_OF_USER", home.path())
        .env("SOURCE", format!("file://{}", source.display()))
        .env("SWAMP_MOUNT", &program)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr));
    assert_eq!(std::fs::read(source.join("kept")).unwrap(), b"kept\n");
}
