//! `state.db`: the durable record of every local change, in SQLite (WAL).
//!
//! Depends on `rows`. Invariants: one [`Transaction`] is one atomic change; a commit survives a kill of this process
//! (`synchronous=NORMAL`), and [`StateDb::commit_durable`] makes all commits before it survive a power cut.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::reserve::Reserve;
use super::rows::{AnsweredRow, Attrs, CommittedRow, ContentRow, DeltaRow, Kind, NodeRow, PendingDelete};
use super::{CacheError, ContentId, Result};

const VERSION: i64 = 1;

/// Pages in the write-ahead log (of 4 KiB) before they are folded into the database: that waits for the disk.
const CHECKPOINT_PAGES: i64 = 8192;
/// Most memory for pages.
const CACHE_KIB: i64 = 16 << 10;

const SCHEMA: &str = "
CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE node(path TEXT PRIMARY KEY, kind INTEGER NOT NULL, content INTEGER, attrs TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE content(id INTEGER PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE delta(path TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE pending_delete(key TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
";

/// What was committed lately. Losing it harms nobody who writes by the rules, so it needs no version.
const COMMITTED: &str =
    "CREATE TABLE IF NOT EXISTS committed(path TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;";
/// Contents whose file may still be there although no row names it: what a start has to look for.
const UNCLAIMED: &str = "CREATE TABLE IF NOT EXISTS unclaimed(content INTEGER PRIMARY KEY);";
/// Order of the last opens, for eviction. Losing it harms nothing, so it needs no version.
const RECENCY: &str = "CREATE TABLE IF NOT EXISTS recency(content INTEGER PRIMARY KEY, opened INTEGER NOT NULL);";
/// Requests of the kernel that were carried out, for the process that takes a mount over. Nothing after its end.
const ANSWERED: &str =
    "CREATE TABLE IF NOT EXISTS answered(slot INTEGER PRIMARY KEY, request INTEGER NOT NULL, path TEXT NOT NULL);";

/// The database.
#[derive(Debug)]
pub struct StateDb {
    connection: Connection,
    reserve: Reserve,
}

/// Everything that a start needs.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Paths with local knowledge.
    pub nodes: Vec<NodeRow>,
    /// Contents.
    pub contents: Vec<(ContentId, ContentRow)>,
    /// Unpushed changes.
    pub deltas: Vec<(String, DeltaRow)>,
    /// Objects still to delete.
    pub pending_deletes: Vec<(String, PendingDelete)>,
    /// What was committed lately.
    pub committed: Vec<(String, CommittedRow)>,
    /// Contents that were opened, least recently first.
    pub opened: Vec<ContentId>,
}

impl StateDb {
    /// Opens `root/state.db`, creating it when absent.
    ///
    /// # Errors
    /// When it cannot be opened, is a symbolic link, or was written by a newer release.
    pub fn open(root: &Path) -> Result<Self> {
        let mut reserve = Reserve::find(root);
        let connection = match Self::connect(root) {
            Err(error) if error.is_no_space() && reserve.release() => Self::connect(root)?,
            other => other?,
        };
        reserve.refill();
        Ok(Self { connection, reserve })
    }

    fn connect(root: &Path) -> Result<Connection> {
        super::refuse_link(root, "state.db")?;
        let connection = Connection::open(root.join("state.db"))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        connection.set_prepared_statement_cache_capacity(32);
        let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        match found {
            0 => {
                connection.execute_batch(&format!("BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;"))?;
            }
            VERSION => {}
            _ => return Err(CacheError::Version { found, known: VERSION }),
        }
        connection.execute_batch(COMMITTED)?;
        connection.execute_batch(RECENCY)?;
        connection.execute_batch(ANSWERED)?;
        connection.execute_batch(UNCLAIMED)?;
        Ok(connection)
    }

    /// The space that is given up when a change that makes room finds none.
    pub fn reserve(&mut self) -> &mut Reserve {
        &mut self.reserve
    }

    /// Begins a change.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn begin(&mut self) -> Result<Transaction<'_>> {
        Ok(Transaction { inner: self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)? })
    }

    /// Makes every commit so far durable (survives a power cut).
    ///
    /// # Errors
    /// When the disk fails.
    pub fn commit_durable(&mut self) -> Result<()> {
        crate::fail_point!("fsync.before_durable");
        self.connection.pragma_update(None, "synchronous", "FULL")?;
        let done = (|| {
            let tx = self.begin()?;
            tx.set_meta("durable", &crate::datastore::now_nanos())?;
            tx.commit()
        })();
        self.connection.pragma_update(None, "synchronous", "NORMAL")?;
        done
    }

    /// Folds the write-ahead log into the database file.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn checkpoint(&mut self) -> Result<()> {
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }

    /// One value of the table `meta`.
    ///
    /// # Errors
    /// When it does not parse.
    pub fn meta<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let text: Option<String> =
            self.connection.query_row("SELECT value FROM meta WHERE name = ?", [name], |row| row.get(0)).optional()?;
        text.map(|text| parse(&format!("meta {name}"), &text)).transpose()
    }

    /// Reads all tables.
    ///
    /// # Errors
    /// When a row does not parse.
    pub fn load(&self) -> Result<Loaded> {
        Ok(Loaded {
            nodes: self.load_nodes()?,
            contents: self.load_bodies("SELECT id, body FROM content", |row| row.get(0).map(content_id))?,
            deltas: self.load_bodies("SELECT path, body FROM delta ORDER BY path", |row| row.get(0))?,
            pending_deletes: self.load_bodies("SELECT key, body FROM pending_delete", |row| row.get(0))?,
            committed: self.load_bodies("SELECT path, body FROM committed", |row| row.get(0))?,
            opened: self.load_opened()?,
        })
    }

    /// The requests that were carried out, in no order, with the slots that they lie in.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn answered(&self) -> Result<Vec<(u64, AnsweredRow)>> {
        let mut statement = self.connection.prepare("SELECT slot, request, path FROM answered")?;
        let rows = statement.query_map([], |row| {
            let (slot, request): (i64, i64) = (row.get(0)?, row.get(1)?);
            Ok((slot.unsigned_abs(), AnsweredRow { request: request.unsigned_abs(), path: row.get(2)? }))
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    fn load_opened(&self) -> Result<Vec<ContentId>> {
        self.load_ids("SELECT content FROM recency ORDER BY opened")
    }

    /// Contents whose file may be there without a row.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn unclaimed(&self) -> Result<Vec<ContentId>> {
        self.load_ids("SELECT content FROM unclaimed ORDER BY content")
    }

    fn load_ids(&self, sql: &str) -> Result<Vec<ContentId>> {
        let mut statement = self.connection.prepare(sql)?;
        let ids = statement.query_map([], |row| row.get(0).map(content_id))?;
        Ok(ids.collect::<rusqlite::Result<_>>()?)
    }

    fn load_nodes(&self) -> Result<Vec<NodeRow>> {
        let mut statement = self.connection.prepare("SELECT path, kind, content, attrs FROM node ORDER BY path")?;
        let mut rows = statement.query([])?;
        let mut nodes = Vec::new();
        while let Some(row) = rows.next()? {
            let path: String = row.get(0)?;
            let attrs: String = row.get(3)?;
            let kind = match row.get(1)? {
                0i64 => Kind::File,
                1 => Kind::Dir,
                _ => Kind::Symlink,
            };
            let content: Option<i64> = row.get(2)?;
            let attrs: Attrs =
                if attrs.is_empty() { Attrs::default() } else { parse(&format!("node {path}"), &attrs)? };
            nodes.push(NodeRow { path, kind, content: content.map(content_id), attrs });
        }
        Ok(nodes)
    }

    fn load_bodies<K: std::fmt::Debug, V: DeserializeOwned>(
        &self,
        sql: &str,
        key: impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<K>,
    ) -> Result<Vec<(K, V)>> {
        let mut statement = self.connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            let key = key(row)?;
            let body: String = row.get(1)?;
            let value = parse(&format!("{key:?}"), &body)?;
            all.push((key, value));
        }
        Ok(all)
    }
}

// SQLite integers are signed; ids count up from 1 and never reach the sign.
fn content_id(stored: i64) -> ContentId {
    ContentId(stored.unsigned_abs())
}

fn stored_id(id: ContentId) -> i64 {
    i64::try_from(id.0).unwrap_or(i64::MAX)
}

fn parse<T: DeserializeOwned>(row: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| CacheError::Row { row: row.to_owned(), reason: e.to_string() })
}

fn text<T: Serialize>(row: &str, value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| CacheError::Row { row: row.to_owned(), reason: e.to_string() })
}

/// One atomic change; rolled back when dropped without [`Transaction::commit`].
#[derive(Debug)]
pub struct Transaction<'a> {
    inner: rusqlite::Transaction<'a>,
}

impl Transaction<'_> {
    /// Makes the change visible and proof against a kill.
    ///
    /// # Errors
    /// When the database refuses (disk full).
    pub fn commit(self) -> Result<()> {
        Ok(self.inner.commit()?)
    }

    fn run(&self, sql: &str, parameters: impl rusqlite::Params) -> Result<()> {
        self.inner.prepare_cached(sql)?.execute(parameters)?;
        Ok(())
    }

    /// Sets a value of the table `meta`.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn set_meta<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        self.run("INSERT OR REPLACE INTO meta VALUES(?, ?)", params![name, text(name, value)?])
    }

    /// Writes what is known about a path.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn set_node(&self, row: &NodeRow) -> Result<()> {
        let kind = match row.kind {
            Kind::File => 0i64,
            Kind::Dir => 1,
            Kind::Symlink => 2,
        };
        let attrs = if row.attrs.is_empty() { String::new() } else { text(&row.path, &row.attrs)? };
        self.run(
            "INSERT OR REPLACE INTO node VALUES(?, ?, ?, ?)",
            params![row.path, kind, row.content.map(stored_id), attrs],
        )
    }

    /// Forgets a path.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn remove_node(&self, path: &str) -> Result<()> {
        self.run("DELETE FROM node WHERE path = ?", [path])
    }

    /// Writes what is known about a content.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn set_content(&self, id: ContentId, row: &ContentRow) -> Result<()> {
        self.run("INSERT OR REPLACE INTO content VALUES(?, ?)", params![stored_id(id), text("content", row)?])
    }

    /// Forgets a content; its file may then be removed, and is looked for until [`Transaction::forget_unclaimed`].
    ///
    /// # Errors
    /// When the database refuses.
    pub fn remove_content(&self, id: ContentId) -> Result<()> {
        self.run("DELETE FROM recency WHERE content = ?", [stored_id(id)])?;
        self.run("DELETE FROM content WHERE id = ?", [stored_id(id)])?;
        self.set_unclaimed(id)
    }

    /// The file of a content may be there without a row.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn set_unclaimed(&self, id: ContentId) -> Result<()> {
        self.run("INSERT OR IGNORE INTO unclaimed VALUES(?)", [stored_id(id)])
    }

    /// The file of a content is gone.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn forget_unclaimed(&self, id: ContentId) -> Result<()> {
        self.run("DELETE FROM unclaimed WHERE content = ?", [stored_id(id)])
    }

    /// These contents were opened in this order, after all that were recorded before.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn set_opened(&self, ids: impl IntoIterator<Item = ContentId>) -> Result<()> {
        let mut at: i64 = self.inner.query_row("SELECT COALESCE(MAX(opened), 0) FROM recency", [], |row| row.get(0))?;
        for id in ids {
            at += 1;
            self.run("INSERT OR REPLACE INTO recency VALUES(?, ?)", params![stored_id(id), at])?;
        }
        Ok(())
    }

    /// Records an unpushed change.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn set_delta(&self, path: &str, row: &DeltaRow) -> Result<()> {
        self.run("INSERT OR REPLACE INTO delta VALUES(?, ?)", params![path, text(path, row)?])
    }

    /// Forgets an unpushed change.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn remove_delta(&self, path: &str) -> Result<()> {
        self.run("DELETE FROM delta WHERE path = ?", [path])
    }

    /// Records a request that this change carries out, in the place of the one in that slot.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn set_answered(&self, slot: u64, row: &AnsweredRow) -> Result<()> {
        // The kernel counts requests from 1 and marks repeated ones in the sign, which is not kept here.
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.run(
            "INSERT OR REPLACE INTO answered VALUES(?, ?, ?)",
            params![number(slot), number(row.request), row.path],
        )
    }

    /// Forgets all requests: they were those of another mount.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn clear_answered(&self) -> Result<()> {
        self.run("DELETE FROM answered", [])
    }

    /// Remembers what was committed.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn set_committed(&self, path: &str, row: &CommittedRow) -> Result<()> {
        self.run("INSERT OR REPLACE INTO committed VALUES(?, ?)", params![path, text(path, row)?])
    }

    /// Forgets what was committed.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn remove_committed(&self, path: &str) -> Result<()> {
        self.run("DELETE FROM committed WHERE path = ?", [path])
    }

    /// Records an object to delete.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn set_pending_delete(&self, key: &str, row: &PendingDelete) -> Result<()> {
        self.run("INSERT OR REPLACE INTO pending_delete VALUES(?, ?)", params![key, text(key, row)?])
    }

    /// Forgets an object to delete.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn remove_pending_delete(&self, key: &str) -> Result<()> {
        self.run("DELETE FROM pending_delete WHERE key = ?", [key])
    }
}
