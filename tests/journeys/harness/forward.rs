//! A way from this machine to a Service of the cluster.

use super::{Background, kubectl};

/// `kubectl port-forward`, until this guard goes. It follows one pod: after a restart make another.
pub(crate) struct Forward {
    port: u16,
    _running: Background,
}

impl Forward {
    /// From a free port of this machine's loopback to `target` (`service/barekey`) in `namespace`.
    #[track_caller]
    pub(crate) fn to(namespace: &str, target: &str, port: u16) -> Self {
        let args = [
            "port-forward",
            "--namespace",
            namespace,
            "--address",
            "127.0.0.1",
            target,
            &format!(":{port}"),
        ];
        let (running, mut lines) = kubectl(args).start_reading();
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("nothing answers at {target} in {namespace}"));
        let port = line
            .strip_prefix("Forwarding from 127.0.0.1:")
            .and_then(|rest| rest.split(' ').next());
        let port = port
            .and_then(|port| port.parse().ok())
            .unwrap_or_else(|| panic!("kubectl says: {line}"));
        // It goes on to write a line for each connection.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            port,
            _running: running,
        }
    }

    /// The port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}
