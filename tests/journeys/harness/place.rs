//! Where the journeys run: our own node or somebody's cluster; and the programs that they use there.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

use super::{Installation, Program};

/// The label of every namespace that we make.
pub(crate) const OURS: &str = "barekey-journey";

/// A cluster, found in the environment.
pub(crate) struct Place {
    /// The state folder of our own node, when this is its inside.
    node: Option<PathBuf>,
    image_loader: String,
}

impl Place {
    /// The one that the environment names; without one, ends with how to get it.
    pub(crate) fn get() -> &'static Self {
        static PLACE: OnceLock<Place> = OnceLock::new();
        PLACE.get_or_init(|| {
            let node = env::var_os("BAREKEY_NODE").map(PathBuf::from);
            let (Ok(_), Ok(image_loader)) =
                (env::var("KUBECONFIG"), env::var("BAREKEY_IMAGE_LOADER"))
            else {
                panic!(
                    "no cluster: run `make test`, or give KUBECONFIG and BAREKEY_IMAGE_LOADER \
                     (a command that takes image files)"
                );
            };
            Self { node, image_loader }
        })
    }

    /// The state folder of our own node, where etcd's files, keys and logs are; `None` on another cluster.
    pub(crate) fn node(&self) -> Option<&Path> {
        self.node.as_deref()
    }

    /// The same, for a journey that is marked as needing it.
    #[track_caller]
    pub(crate) fn inside() -> &'static Path {
        Self::get()
            .node()
            .expect("this journey needs the inside of our node: mark it with .inside()")
    }

    /// Whether this is root on Debian; our own node always is.
    pub(super) fn is_root_on_debian(&self) -> bool {
        self.node.is_some()
            || (rustix::process::geteuid().is_root() && Path::new("/etc/debian_version").exists())
    }

    /// Removes what the journeys left on a cluster that stays. Our own node keeps it: the last journey has read it, and
    /// the node ends now.
    pub(super) fn leave(&self) {
        if self.node.is_none() {
            Installation::leave();
            let delete = ["delete", "namespace", "--timeout=120s", "--selector", OURS];
            eprintln!("{}", kubectl(delete).output());
        }
    }
}

/// The checkout's folder.
pub(crate) fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of `examples/`, as a user would apply it.
#[track_caller]
pub(crate) fn example(path: &str) -> String {
    let file = checkout().join("examples").join(path);
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// kubectl, as the cluster's administrator.
pub(crate) fn kubectl(args: impl IntoIterator<Item: AsRef<std::ffi::OsStr>>) -> Program {
    Program::new("kubectl").args(args)
}

/// Helm.
pub(crate) fn helm(args: impl IntoIterator<Item: AsRef<std::ffi::OsStr>>) -> Program {
    Program::new("helm").args(args)
}

/// The CLI, as cargo has built it for this test.
pub(crate) fn barekey(args: impl IntoIterator<Item: AsRef<std::ffi::OsStr>>) -> Program {
    Program::new(env!("CARGO_BIN_EXE_barekey")).args(args)
}

/// An object of the cluster (`["pod/web", "-n", "shop"]`) or a list of them; `None` when it is not there.
#[track_caller]
pub(crate) fn get(args: impl IntoIterator<Item: AsRef<std::ffi::OsStr>>) -> Option<Value> {
    let output = kubectl(["get", "-o", "json", "--ignore-not-found"])
        .args(args)
        .secret()
        .output();
    assert!(output.status.success(), "{output}\n{}", output.stderr);
    (!output.stdout.trim().is_empty())
        .then(|| serde_json::from_str(&output.stdout).expect("kubectl prints JSON"))
}

/// Gives the cluster an image file.
#[track_caller]
pub(crate) fn load(image: &Path) {
    assert!(
        image.exists(),
        "{} is not there: `make images` makes it",
        image.display()
    );
    let script = format!("{} \"$1\"", Place::get().image_loader);
    Program::new("sh")
        .args(["-c", &script, "load"])
        .args([image])
        .succeed();
}
