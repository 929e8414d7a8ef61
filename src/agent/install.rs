//! `barekey install DEST`: the agent copies itself, for an init container that shares a volume with the application.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Everybody may read and execute it, nobody may change it.
const MODE: u32 = 0o555;

/// Why the agent did not copy itself.
#[derive(Debug, thiserror::Error)]
pub(super) enum InstallError {
    /// The running program cannot be read.
    #[error("cannot read the running program at /proc/self/exe")]
    ReadSelf(#[source] io::Error),
    /// The destination cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Copies the running program to `destination`, which is there either whole or not at all.
pub(super) fn install(destination: &Path) -> Result<(), InstallError> {
    let program = File::open("/proc/self/exe").map_err(InstallError::ReadSelf)?;
    copy(program, destination)
}

fn copy(mut program: File, destination: &Path) -> Result<(), InstallError> {
    let mut name = destination.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let unfinished = PathBuf::from(name);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o700)
        .open(&unfinished)
        .and_then(|mut file| {
            io::copy(&mut program, &mut file)?;
            // Apart from opening, where the umask would cut it.
            file.set_permissions(Permissions::from_mode(MODE))
        })
        .and_then(|()| fs::rename(&unfinished, destination));
    written.map_err(|source| {
        drop(fs::remove_file(&unfinished));
        InstallError::Write {
            path: destination.to_owned(),
            source,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_whole_executable_by_all_and_takes_the_place_of_an_older_one() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::write(&source, "program").unwrap();
        let destination = folder.path().join("barekey");
        for _ in 0..2 {
            copy(File::open(&source).unwrap(), &destination).unwrap();
            assert_eq!(fs::read(&destination).unwrap(), b"program");
            let mode = fs::metadata(&destination).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, MODE);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_copy_that_cannot_be_written_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::write(&source, "program").unwrap();
        // A directory is in the way.
        let destination = folder.path().join("barekey");
        fs::create_dir(&destination).unwrap();
        let refused = copy(File::open(&source).unwrap(), &destination).unwrap_err();
        assert!(refused.to_string().contains("barekey"), "{refused}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
