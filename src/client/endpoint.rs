//! Where the server is: a URL, or a Service of the cluster.

use std::net::IpAddr;

use hyper::Uri;

/// Why a text is not the address of a server.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// It is no URL of a server.
    #[error(
        "{url:?} is not the address of a server: use https://HOST[:PORT], or http:// for one on this machine"
    )]
    NoServer {
        /// The text.
        url: String,
    },
    /// Everyone on the way to that server would see the token and the values.
    #[error(
        "{authority} is not on this machine, and http:// would send the token and the values there for everyone on the way to see: use https://"
    )]
    InTheClear {
        /// `HOST:PORT`.
        authority: String,
    },
}

/// Where the server is.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The name (or address) that the certificate must have.
    pub(super) host: String,
    pub(super) port: u16,
    /// Tried before the name is looked up.
    pub(super) addresses: Vec<IpAddr>,
    /// Whether the connection is not encrypted.
    pub(super) plain: bool,
    /// What comes before `/v1`, without a slash at its end.
    pub(super) base: String,
}

impl Endpoint {
    /// The server of a URL: `https://HOST[:PORT][/BASE]`, or `http://…` for a connection to this machine that is not encrypted.
    ///
    /// # Errors
    /// [`EndpointError`] for anything else.
    pub fn parse_url(url: &str) -> Result<Self, EndpointError> {
        let bad = || EndpointError::NoServer {
            url: url.chars().take(256).collect(),
        };
        let uri: Uri = url.trim().parse().map_err(|_| bad())?;
        let plain = match uri.scheme_str() {
            Some("https") => false,
            Some("http") => true,
            _ => return Err(bad()),
        };
        let authority = uri.authority().ok_or_else(bad)?;
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(bad());
        }
        let bracketed = authority.host();
        let host = bracketed.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(bad());
        }
        // A port that is none must not become another one: the token would go there.
        let port = match authority.as_str().strip_prefix(bracketed) {
            Some("") => {
                if plain {
                    80
                } else {
                    443
                }
            }
            Some(port) => port
                .strip_prefix(':')
                .filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|port| port.parse().ok())
                .filter(|port| *port != 0)
                .ok_or_else(bad)?,
            None => return Err(bad()),
        };
        let endpoint = Self {
            host: host.to_owned(),
            port,
            addresses: Vec::new(),
            plain,
            base: uri.path().trim_end_matches('/').to_owned(),
        };
        if endpoint.plain && !endpoint.is_on_this_machine() {
            return Err(EndpointError::InTheClear {
                authority: endpoint.authority(),
            });
        }
        Ok(endpoint)
    }

    /// A Service: its addresses are tried first, then its name is looked up.
    pub fn of_service(name: &str, port: u16, addresses: Vec<IpAddr>) -> Self {
        Self {
            host: name.to_owned(),
            port,
            addresses,
            plain: false,
            base: String::new(),
        }
    }

    fn is_on_this_machine(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost")
            || self
                .host
                .parse()
                .is_ok_and(|address: IpAddr| address.is_loopback())
    }

    /// `HOST:PORT`, as it stands in messages and in the `Host` header.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_of_urls_are_read() {
        for (url, authority, base, plain) in [
            ("https://barekey.dev/", "barekey.dev:443", "", false),
            ("https://h:8200/a/b/", "h:8200", "/a/b", false),
            ("https://[::2]:65535", "[::2]:65535", "", false),
            ("http://127.0.0.1:8200", "127.0.0.1:8200", "", true),
            ("http://[::1]:8200", "[::1]:8200", "", true),
            ("http://localhost", "localhost:80", "", true),
        ] {
            let endpoint = Endpoint::parse_url(url).unwrap();
            assert_eq!(
                (
                    endpoint.authority().as_str(),
                    endpoint.base.as_str(),
                    endpoint.plain
                ),
                (authority, base, plain),
                "{url}"
            );
        }
    }

    #[test]
    fn another_machine_is_spoken_to_over_tls_alone() {
        for url in [
            "http://barekey.svc",
            "http://192.0.2.1:8200",
            "http://[2001:db8::1]:8200",
            "http://0.0.0.0:8200",
            "http://localhost.example",
        ] {
            let refused = Endpoint::parse_url(url).unwrap_err();
            assert!(
                matches!(refused, EndpointError::InTheClear { .. }),
                "{url}: {refused}"
            );
        }
    }

    #[test]
    fn what_is_no_url_of_a_server_is_refused() {
        for bad in [
            "",
            "barekey.dev",
            "ftp://h",
            "https://",
            "https://u:p@h",
            "https://h?a=b",
            "//h",
            "/v1",
            "http://127.0.0.1:82000",
            "http://127.0.0.1:65536",
            "https://h:0",
            "https://h:",
            "https://h:80x",
            "https://h:+80",
            "https://[::1]:65536",
        ] {
            assert!(
                matches!(
                    Endpoint::parse_url(bad),
                    Err(EndpointError::NoServer { .. })
                ),
                "{bad:?}"
            );
        }
    }
}
