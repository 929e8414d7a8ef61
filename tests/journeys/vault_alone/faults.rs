//! The database is away, read-only, full or busy: 503, nothing half done, and back by itself.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::database::{BackDoor, Engine, OwnPostgres};
use super::server::{Place, STAGING, Server, Shop};

const UNAVAILABLE: (u16, &str) = (503, "STORAGE_UNAVAILABLE");

fn write_of(name: &str, value: &str) -> Value {
    json!({"projectSlug": "shop", "stageSlug": "staging", "mode": "upsert",
        "entries": [{"name": name, "kind": "secret", "value": value}]})
}

/// A write and a read are refused, and the caller is told to come again.
#[track_caller]
fn assert_unavailable(server: &Server, owner: &str) {
    let answer = server.post(
        "/v1/env/write",
        owner,
        &write_of("REFUSED", "never written"),
    );
    assert_eq!(answer.refusal(), (UNAVAILABLE.0, UNAVAILABLE.1.to_owned()));
    assert!(answer.header("retry-after").is_some());
    let answer = server.evaluate(owner, STAGING, "KEEP");
    assert_eq!(answer.refusal(), (UNAVAILABLE.0, UNAVAILABLE.1.to_owned()));
    assert!(!String::from_utf8_lossy(&answer.body).contains("kept"));
}

/// Everything works again, by itself, and what was refused left nothing.
#[track_caller]
fn assert_recovers(place: &Place, server: &Server, owner: &str) {
    server.wait_until("a read", |server| {
        server.evaluate(owner, STAGING, "KEEP").status == 200
    });
    server.wait_until("a write", |server| {
        server
            .post("/v1/env/write", owner, &write_of("AFTER", "written"))
            .status
            == 200
    });
    assert_eq!(server.value(owner, STAGING, "KEEP"), "kept");
    let (_, values) = server.snapshot(owner, STAGING);
    assert_eq!(
        values.get("REFUSED"),
        None,
        "a refused write left something"
    );
    server.wait_until("readiness", |server| server.probe("/readyz").status == 200);
    assert_eq!(place.admin(&["audit", "verify"]).status.code(), Some(0));
}

pub(crate) fn a_read_whose_record_cannot_be_written_is_refused(engine: Engine) {
    let Shop {
        place,
        server,
        owner,
    } = Shop::open(engine);
    server.write(&owner, STAGING, &[("KEEP", "kept")]);
    assert_eq!(server.value(&owner, STAGING, "KEEP"), "kept");
    let back = BackDoor::to(&place.database);
    match engine {
        Engine::Sqlite => {
            back.run("CREATE TRIGGER no_records BEFORE INSERT ON audit_records BEGIN SELECT RAISE(ABORT, 'no records'); END");
        }
        Engine::Postgres => {
            back.run("CREATE FUNCTION no_records() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no records'; END $$");
            back.run("CREATE TRIGGER no_records BEFORE INSERT ON audit_records FOR EACH ROW EXECUTE FUNCTION no_records()");
        }
    }
    assert_unavailable(&server, &owner);
    let target = json!({"projectSlug": "shop", "stageSlug": "staging"});
    let answer = server.post("/v1/env/pull", &owner, &target);
    assert_eq!(answer.refusal(), (UNAVAILABLE.0, UNAVAILABLE.1.to_owned()));
    match engine {
        Engine::Sqlite => back.run("DROP TRIGGER no_records"),
        Engine::Postgres => back.run("DROP TRIGGER no_records ON audit_records"),
    };
    assert_recovers(&place, &server, &owner);
}

/// Runs a program that must end well; says what it complained about.
#[track_caller]
fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}: {said}",
        output.status
    );
}

/// A small disk, unmounted when it is dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// Of memory.
    fn mount(size: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let options = format!("size={size}");
        let mount = ["-t", "tmpfs", "-o", &options, "tmpfs"];
        succeed(Command::new("mount").args(mount).arg(directory.path()));
        Self(directory)
    }

    /// Of an image in a file, with ext4, which refuses writes to a file that is open already; one of memory does not.
    fn mount_ext4() -> Self {
        let directory = TempDir::new().unwrap();
        let image = directory.path().join("image");
        std::fs::File::create(&image)
            .and_then(|file| file.set_len(32 << 20))
            .unwrap();
        succeed(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        // The mount hides the image, which goes with the directory.
        succeed(
            Command::new("mount")
                .args(["-t", "ext4", "-o", "loop"])
                .args([&image, directory.path()]),
        );
        Self(directory)
    }

    /// Mounts it anew, `ro` or `rw`. The kernel refuses `ro` while a file is open for writing.
    fn remount(&self, mode: &str) {
        let options = format!("remount,{mode}");
        succeed(
            Command::new("mount")
                .args(["-o", &options])
                .arg(self.0.path()),
        );
    }

    /// Fills what is left; returns the file to remove.
    fn fill(&self) -> PathBuf {
        let path = self.0.path().join("ballast");
        let filled = Command::new("dd")
            .args(["if=/dev/zero", "bs=4096", "status=none"])
            .arg(format!("of={}", path.display()))
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(!filled.success(), "the disk never got full");
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(
            Command::new("umount")
                .arg("--lazy")
                .arg(self.0.path())
                .status(),
        );
    }
}

pub(crate) fn a_sqlite_disk_that_is_full_recovers() {
    let disk = SmallDisk::mount("16m");
    let shop = Shop::open_at(Place::at(Engine::Sqlite, disk.0.path()));
    assert_recovers_from_full(&disk, shop);
}

pub(crate) fn a_postgres_disk_that_is_full_recovers() {
    // Its files take a third of it when it is made.
    let disk = SmallDisk::mount("192m");
    let postgres = OwnPostgres::up_on(disk.0.path());
    assert_recovers_from_full(&disk, Shop::open_at(Place::on(&postgres)));
}

/// The disk is full for a while: nothing is lost, nothing half done.
#[track_caller]
fn assert_recovers_from_full(disk: &SmallDisk, shop: Shop) {
    let Shop {
        place,
        server,
        owner,
    } = shop;
    server.write(&owner, STAGING, &[("KEEP", "kept")]);
    let ballast = disk.fill();
    // What the journal has already taken may still be used; then nothing goes.
    let large = "x".repeat(60 * 1024);
    server.wait_until("a full disk", |server| {
        let answer = server.post("/v1/env/write", &owner, &write_of("FILLER", &large));
        answer.status != 200
    });
    let answer = server.post("/v1/env/write", &owner, &write_of("REFUSED", &large));
    assert_eq!(answer.refusal(), (UNAVAILABLE.0, UNAVAILABLE.1.to_owned()));
    server.wait_until("a read whose record has no place", |server| {
        match server.evaluate(&owner, STAGING, "KEEP").status {
            200 => false,
            status => {
                assert_eq!(status, 503);
                true
            }
        }
    });
    std::fs::remove_file(ballast).unwrap();
    assert_recovers(&place, &server, &owner);
    server.stop();
}

/// A disk is not mounted read-only under a program that writes on it; so the kernel is told to refuse writes to each file.
pub(crate) fn a_sqlite_file_that_is_read_only_recovers() {
    let disk = SmallDisk::mount_ext4();
    let Shop {
        place,
        server,
        owner,
    } = Shop::open_at(Place::at(Engine::Sqlite, disk.0.path()));
    server.write(&owner, STAGING, &[("KEEP", "kept")]);
    assert_eq!(server.value(&owner, STAGING, "KEEP"), "kept");
    let files = ["barekey.db", "barekey.db-wal"].map(|name| place.directory.join(name));
    let attribute = |change: &str, files: &[PathBuf]| {
        succeed(Command::new("chattr").arg(change).args(files));
    };
    // What was refused last, and what comes first afterwards, find a connection that may have been opened for reading alone.
    for writes_alone in [false, true] {
        attribute("+i", &files);
        // Twice: by the connection that was there, and by the one that the server made after that.
        assert_unavailable(&server, &owner);
        assert_unavailable(&server, &owner);
        server.wait_until("that it is not ready", |server| {
            server.probe("/readyz").status == 503
        });
        assert_eq!(server.probe("/healthz").status, 200, "alive all the while");
        let write = |name: &str| {
            let body = write_of(name, "written");
            server.post("/v1/env/write", &owner, &body).status
        };
        if writes_alone {
            assert_eq!((write("REFUSED"), write("REFUSED")), (503, 503));
        }
        if writes_alone {
            // One that was opened while its journal alone was read-only begins well, and then writes nothing.
            attribute("-i", &files[..1]);
            assert_eq!((write("REFUSED"), write("REFUSED")), (503, 503));
        }
        attribute("-i", &files);
        if writes_alone {
            server.wait_until("a write", |_| write("AFTER") == 200);
        }
        assert_recovers(&place, &server, &owner);
    }
    server.stop();
}

pub(crate) fn a_server_on_a_read_only_disk_says_so_and_starts_when_it_is_writable() {
    let disk = SmallDisk::mount("16m");
    let Shop {
        place,
        server,
        owner,
    } = Shop::open_at(Place::at(Engine::Sqlite, disk.0.path()));
    server.write(&owner, STAGING, &[("KEEP", "kept")]);
    server.stop();
    disk.remount("ro");
    let Err((status, log)) = place.try_serve(&[]) else {
        panic!("it started on a disk that it cannot write");
    };
    assert_eq!(status.code(), Some(1));
    assert!(
        log.contains("barekey.db") && log.contains("Read-only file system"),
        "{log}"
    );
    disk.remount("rw");
    let server = place.serve();
    assert_recovers(&place, &server, &owner);
    server.stop();
}

pub(crate) fn a_sqlite_file_that_another_writer_holds_recovers() {
    let Shop {
        place,
        server,
        owner,
    } = Shop::open(Engine::Sqlite);
    server.write(&owner, STAGING, &[("KEEP", "kept")]);
    let back = BackDoor::to(&place.database);
    back.run("BEGIN IMMEDIATE");
    assert_unavailable(&server, &owner);
    back.run("ROLLBACK");
    assert_recovers(&place, &server, &owner);
}

pub(crate) fn a_postgres_that_was_away_recovers() {
    let postgres = OwnPostgres::up();
    let Shop {
        place,
        server,
        owner,
    } = Shop::open_at(Place::on(&postgres));
    server.write(&owner, STAGING, &[("KEEP", "kept")]);
    assert_eq!(server.value(&owner, STAGING, "KEEP"), "kept");
    for _ in 0..2 {
        postgres.stop();
        assert_unavailable(&server, &owner);
        server.wait_until("that it is not ready", |server| {
            server.probe("/readyz").status == 503
        });
        assert_eq!(server.probe("/healthz").status, 200, "alive all the while");
        postgres.start();
        assert_recovers(&place, &server, &owner);
    }
    server.stop();
}

pub(crate) fn a_postgres_that_was_read_only_recovers() {
    let postgres = OwnPostgres::up();
    let Shop {
        place,
        server,
        owner,
    } = Shop::open_at(Place::on(&postgres));
    server.write(&owner, STAGING, &[("KEEP", "kept")]);
    postgres.set("default_transaction_read_only", "on");
    server.wait_until("read-only sessions", |server| {
        server
            .post("/v1/env/write", &owner, &write_of("FILLER", "1"))
            .status
            != 200
    });
    assert_unavailable(&server, &owner);
    postgres.set("default_transaction_read_only", "off");
    assert_recovers(&place, &server, &owner);
}

pub(crate) fn a_postgres_that_may_lose_writes_or_is_not_proven_is_refused_by_name() {
    let postgres = OwnPostgres::up();
    let mut place = Place::on(&postgres);
    let refused = |place: &Place, named: &str| {
        let Err((status, log)) = place.try_serve(&[]) else {
            panic!("it started on a database with {named}");
        };
        assert_eq!(status.code(), Some(1));
        assert!(log.contains(named), "no {named} in:\n{log}");
        let password = place
            .database
            .split(':')
            .nth(2)
            .unwrap()
            .split('@')
            .next()
            .unwrap();
        assert!(!log.contains(password), "the password is in the log");
    };
    let proven = place.database.clone();
    for mode in ["require", "verify-ca", "prefer"] {
        place.database = proven.replace("verify-full", mode);
        refused(&place, "sslmode");
    }
    place.database = proven.replace("verify-full", "require");
    place
        .serve_with(&["--accept-database-risk", "sslmode"])
        .stop();
    place.database = proven;

    postgres.set("synchronous_commit", "off");
    refused(&place, "synchronous_commit");
    place
        .serve_with(&["--accept-database-risk", "synchronous-commit-off"])
        .stop();
    postgres.set("synchronous_commit", "on");

    postgres.set("fsync", "off");
    refused(&place, "fsync");
    place
        .serve_with(&["--accept-database-risk", "fsync-off"])
        .stop();
    postgres.set("fsync", "on");
    place.serve().stop();
}
