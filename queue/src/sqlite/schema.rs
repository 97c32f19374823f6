//! The tables, and how a file comes to have them. Many processes may do this at the same moment.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior};

use super::busy;
use super::failure::Failure;
use crate::{Error, ErrorKind, Synchronous};

/// Marks a file as ours: `Ebbq` in ASCII.
const APPLICATION_ID: i32 = 0x4562_6271;

/// The layout that this version reads and writes.
const VERSION: i32 = 1;

/// Statements that each connection keeps prepared; more than all modules use together.
const STATEMENTS: usize = 128;

/// What a file may grow to when a long backlog has been written and read back.
const WAL_LIMIT: u32 = 64 << 20;

const TABLES: &str = "
-- Counters are kept exact by the writer, so that a look costs the same at any depth.
CREATE TABLE queues (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    ready INTEGER NOT NULL DEFAULT 0,
    leased INTEGER NOT NULL DEFAULT 0,
    delayed INTEGER NOT NULL DEFAULT 0,
    dead INTEGER NOT NULL DEFAULT 0,
    cost INTEGER NOT NULL DEFAULT 0,     -- of ready and leased jobs, in thousandths
    places INTEGER NOT NULL DEFAULT 0,   -- handed out in line, ever
    arrivals INTEGER NOT NULL DEFAULT 0  -- things to tell, ever
) STRICT;

-- state: 0 ready, 1 leased, 2 delayed, 3 dead.
-- due: when a delay or a lease ends; of a ready job, when its last lease ended.
-- deadline: of a dead job none, whatever its headers say.
-- lease: the mark of the last lease, until it is settled. settled: the mark of the last settlement.
-- failure: the kind of it; none of a dead job from before there were kinds.
CREATE TABLE jobs (
    n INTEGER PRIMARY KEY,
    queue INTEGER NOT NULL,
    id TEXT NOT NULL,
    state INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    place INTEGER NOT NULL,
    due INTEGER,
    deadline INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0,
    lease INTEGER,
    worker TEXT,
    settled INTEGER,
    cost INTEGER,
    enqueued_at INTEGER NOT NULL,
    key TEXT,
    history TEXT,
    reason TEXT,
    died_at INTEGER,
    failure TEXT
) STRICT;
CREATE INDEX jobs_line ON jobs (queue, rank, place) WHERE state = 0;
CREATE INDEX jobs_age ON jobs (queue, enqueued_at) WHERE state = 0;
CREATE INDEX jobs_leased ON jobs (queue, due) WHERE state = 1;
CREATE INDEX jobs_delayed ON jobs (queue, due) WHERE state = 2;
CREATE INDEX jobs_deadline ON jobs (queue, deadline) WHERE deadline IS NOT NULL;
CREATE INDEX jobs_dead ON jobs (queue, place) WHERE state = 3;

-- Apart from their jobs: a change of state must not rewrite a large body.
CREATE TABLE payloads (
    n INTEGER PRIMARY KEY,
    headers TEXT NOT NULL,
    body BLOB NOT NULL
) STRICT;

-- What a second publication is recognised by. kind: 0 id, 1 idempotency key.
-- job: whose key it is. n: the job while there is one. settled: the mark of the last settlement.
CREATE TABLE names (
    queue INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    name TEXT NOT NULL,
    job TEXT NOT NULL,
    n INTEGER,
    settled INTEGER,
    expires INTEGER,
    PRIMARY KEY (queue, kind, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX names_expires ON names (expires) WHERE expires IS NOT NULL;

-- n never comes twice, so that a reader knows what is new.
CREATE TABLE results (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    queue INTEGER NOT NULL,
    id TEXT NOT NULL,
    completed INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    value BLOB NOT NULL,
    UNIQUE (queue, id)
) STRICT;
CREATE INDEX results_expires ON results (expires);

CREATE TABLE chunks (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    queue INTEGER NOT NULL,
    id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (queue, id, attempt, seq)
) STRICT;
CREATE INDEX chunks_expires ON chunks (expires);

CREATE TABLE workers (
    queue INTEGER NOT NULL,
    id TEXT NOT NULL,
    phase INTEGER NOT NULL,
    seen INTEGER NOT NULL,
    status BLOB NOT NULL,
    PRIMARY KEY (queue, id)
) STRICT, WITHOUT ROWID;
";

/// A version without kinds puts a dead job back and leaves its kind, which is none of the next death.
const REVIVAL: &str = "
CREATE TRIGGER IF NOT EXISTS jobs_revived AFTER UPDATE OF died_at ON jobs
WHEN NEW.died_at IS NULL AND NEW.failure IS NOT NULL
BEGIN
    UPDATE jobs SET failure = NULL WHERE n = NEW.n;
END;
";

/// Opens the file for the writer, and makes it ours where it is new.
pub(super) fn open(path: &Path, synchronous: Synchronous) -> Result<Connection, Failure> {
    let mut db = connect(path)?;
    refuse_foreign(&mut db, path)?;
    db.pragma_update(
        None,
        "synchronous",
        match synchronous {
            Synchronous::Full => "full",
            Synchronous::Normal => "normal",
        },
    )?;
    use_wal(&db)?;
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if version(&tx)? == 0 {
        tx.execute_batch(TABLES)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", VERSION)?;
    } else if !has_failures(&tx)? {
        // The same layout: older versions pass over a column that they do not name.
        tx.execute_batch("ALTER TABLE jobs ADD COLUMN failure TEXT")?;
    }
    tx.execute_batch(REVIVAL)?;
    tx.commit()?;
    Ok(db)
}

/// Whether dead jobs have a kind of failure.
fn has_failures(db: &Connection) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM pragma_table_info('jobs') WHERE name = 'failure'";
    db.prepare(sql)?.exists([])
}

/// Another connection to a file that `open` has seen.
pub(super) fn connect(path: &Path) -> Result<Connection, Failure> {
    let mut db = Connection::open(path)?;
    db.busy_handler(Some(busy::patience()))?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    // Else each statement with a bound LIMIT is planned anew whenever it runs.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    db.pragma_update(None, "journal_size_limit", WAL_LIMIT)?;
    Ok(db)
}

/// Opens the file for the writer with the number of a queue in it, and creates neither.
pub(super) fn find(
    path: &Path,
    name: &str,
    synchronous: Synchronous,
) -> Result<(Connection, i64), Failure> {
    let missing = |others: &str| {
        let file = path.display();
        let words =
            format!("there is no queue {name} in {file}{others}; make it by `ebb queue init`");
        Error::new(ErrorKind::Invalid, words).of_no_queue()
    };
    // SQLite would make the file, and `open` the tables in one that is empty.
    let is_missing = match std::fs::metadata(path) {
        Ok(file) => file.len() == 0,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    if is_missing {
        return Err(missing("").into());
    }
    let db = open(path, synchronous)?;
    match known(&db, name)? {
        Some(number) => Ok((db, number)),
        None => Err(missing(&others(&db)?).into()),
    }
}

/// The queues of a file in words, the first of many: the name that was meant may be among them.
fn others(db: &Connection) -> rusqlite::Result<String> {
    const SHOWN: u32 = 10;
    let mut names = db.prepare("SELECT name FROM queues ORDER BY name LIMIT ?1")?;
    let mut names: Vec<String> =
        names.query_map([SHOWN + 1], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    if let Some(last) = names.get_mut(SHOWN as usize) {
        *last = "more".to_owned();
    }
    let shown = names.join(", ");
    Ok(if shown.is_empty() { shown } else { format!(", which has {shown}") })
}

fn known(db: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    db.query_row("SELECT id FROM queues WHERE name = ?1", [name], |row| row.get(0)).optional()
}

/// The number of the queue with this name, which is made if it is missing.
pub(super) fn queue(db: &mut Connection, name: &str) -> Result<i64, Failure> {
    if let Some(id) = known(db, name)? {
        return Ok(id);
    }
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    tx.execute("INSERT INTO queues (name) VALUES (?1) ON CONFLICT (name) DO NOTHING", [name])?;
    let id = tx.query_row("SELECT id FROM queues WHERE name = ?1", [name], |row| row.get(0))?;
    tx.commit()?;
    Ok(id)
}

/// Before anything is written: a file of another program or version stays as it is.
fn refuse_foreign(db: &mut Connection, path: &Path) -> Result<(), Failure> {
    // One look, since pragmas and tables of a new file come with one commit.
    let look = db.transaction()?;
    let application: i32 = look.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let found = version(&look)?;
    let sql = "SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)";
    let is_empty: bool = look.query_row(sql, [], |row| row.get(0))?;
    let is_new = application == 0 && found == 0 && is_empty;
    let words = if !is_new && application != APPLICATION_ID {
        "it is the database of another program; use another file".to_owned()
    } else if found > VERSION {
        format!(
            "its layout is version {found} and this program knows up to {VERSION}; \
             use a newer ebb, or another file"
        )
    } else {
        return Ok(());
    };
    let words = format!("queue file {}: {words}", path.display());
    Err(Error::new(ErrorKind::Incompatible, words).into())
}

fn version(db: &Connection) -> rusqlite::Result<i32> {
    db.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Asks until it is so: the busy handler is not asked while another process does the same.
fn use_wal(db: &Connection) -> Result<(), Failure> {
    const TRIES: u32 = 2000;
    for _ in 0..TRIES {
        let mode =
            db.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get::<_, String>(0));
        match mode {
            Ok(mode) if mode == "wal" => return Ok(()),
            Ok(_) => break,
            Err(error)
                if matches!(
                    error.sqlite_error_code(),
                    Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
                ) => {}
            Err(error) => return Err(error.into()),
        }
        busy::pause(Duration::from_millis(5));
    }
    let words = "cannot be put into WAL mode; use a file on a local disk, open in no other program";
    Err(Failure::Refused(Error::new(ErrorKind::Unavailable, words)))
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    #[test]
    fn a_commit_waits_for_the_disk_unless_asked_otherwise() {
        for (synchronous, expected) in [(Synchronous::Full, 2), (Synchronous::Normal, 1)] {
            let folder = tempfile::tempdir().unwrap();
            let db = open(&folder.path().join("queue.db"), synchronous).unwrap();
            let pragma = |name| db.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
            assert_eq!(pragma("synchronous").unwrap(), expected);
            assert_eq!(pragma("user_version").unwrap(), VERSION);
            assert_eq!(pragma("application_id").unwrap(), APPLICATION_ID);
            let log = db.pragma_query_value(None, "journal_mode", |row| row.get::<_, String>(0));
            assert_eq!(log.unwrap(), "wal");
        }
    }

    #[test]
    fn who_may_create_nothing_leaves_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("below/queue.db");
        let missing = |path: &Path, name: &str| {
            let found = find(path, name, Synchronous::Full);
            let Err(Failure::Refused(error)) = found else { panic!("{name} was never made") };
            assert!(error.to_string().contains(&format!("no queue {name} in ")), "{error}");
        };
        missing(&path, "jobs");
        assert!(!path.parent().unwrap().exists());
        let path = folder.path().join("queue.db");
        std::fs::write(&path, "").unwrap();
        missing(&path, "jobs");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
        let mut db = open(&path, Synchronous::Full).unwrap();
        let made = queue(&mut db, "jobs").unwrap();
        missing(&path, "alerts");
        assert_eq!(known(&db, "alerts").unwrap(), None);
        assert_eq!(find(&path, "jobs", Synchronous::Full).unwrap().1, made);
    }

    #[test]
    fn a_queue_keeps_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let mut db = open(&folder.path().join("queue.db"), Synchronous::Normal).unwrap();
        let first = queue(&mut db, "jobs").unwrap();
        assert_ne!(queue(&mut db, "alerts").unwrap(), first);
        assert_eq!(queue(&mut db, "jobs").unwrap(), first);
    }

    #[test]
    fn a_file_from_before_there_were_kinds_gets_a_column_for_them_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue.db");
        let db = open(&path, Synchronous::Normal).unwrap();
        db.execute_batch(
            "DROP TRIGGER jobs_revived;
             ALTER TABLE jobs DROP COLUMN failure;
             INSERT INTO jobs (queue, id, state, rank, place, enqueued_at) VALUES (1, 'a', 3, 0, 0, 0)",
        )
        .unwrap();
        drop(db);
        for _ in 0..2 {
            let db = open(&path, Synchronous::Normal).unwrap();
            let sql = "SELECT failure FROM jobs WHERE id = 'a'";
            let kind: Option<String> = db.query_row(sql, [], |row| row.get(0)).unwrap();
            assert_eq!((kind, version(&db).unwrap()), (None, VERSION));
        }
    }

    #[test]
    fn a_statement_stays_prepared_whatever_it_is_asked_with() {
        let folder = tempfile::tempdir().unwrap();
        let db = open(&folder.path().join("queue.db"), Synchronous::Normal).unwrap();
        let sql = "SELECT n FROM jobs WHERE queue = ?1 AND state = 0 ORDER BY place LIMIT ?2";
        let mut statement = db.prepare(sql).unwrap();
        for limit in [1, 20, 300] {
            assert!(!statement.exists([1, limit]).unwrap());
        }
        assert_eq!(statement.get_status(StatementStatus::RePrepare), 0);
    }
}
