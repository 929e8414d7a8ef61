//! Where the server is: a URL, or a Service of the cluster.

use std::net::IpAddr;

use hyper::Uri;

/// Why a text is not the address of a server.
#[derive(Debug, thiserror::Error)]
#[error(
    "{url:?} is not the address of a server: use https://HOST[:PORT], or http:// for one on this machine"
)]
pub struct EndpointError {
    /// The text.
    pub url: String,
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
    /// The server of a URL: `https://HOST[:PORT][/BASE]`, or `http://…` for a connection that is not encrypted.
    ///
    /// # Errors
    /// [`EndpointError`] for anything else.
    pub fn parse_url(url: &str) -> Result<Self, EndpointError> {
        let bad = || EndpointError {
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
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        if host.is_empty() {
            return Err(bad());
        }
        Ok(Self {
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(if plain { 80 } else { 443 }),
            addresses: Vec::new(),
            plain,
            base: uri.path().trim_end_matches('/').to_owned(),
        })
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

    /// Whether values would travel in the clear to another machine.
    pub fn exposes_values(&self) -> bool {
        let loopback = self.host == "localhost"
            || self
                .host
                .parse()
                .is_ok_and(|address: IpAddr| address.is_loopback());
        self.plain && !loopback
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
        let server = |url: &str| {
            let endpoint = Endpoint::parse_url(url).unwrap();
            (
                endpoint.authority(),
                endpoint.base.clone(),
                endpoint.plain,
                endpoint.exposes_values(),
            )
        };
        let expected = |authority: &str, base: &str, plain, exposes| {
            (authority.to_owned(), base.to_owned(), plain, exposes)
        };
        assert_eq!(
            server("https://barekey.dev/"),
            expected("barekey.dev:443", "", false, false)
        );
        assert_eq!(
            server("https://h:8200/a/b/"),
            expected("h:8200", "/a/b", false, false)
        );
        assert_eq!(
            server("http://127.0.0.1:8200"),
            expected("127.0.0.1:8200", "", true, false)
        );
        assert_eq!(
            server("http://[::1]:8200"),
            expected("[::1]:8200", "", true, false)
        );
        assert_eq!(
            server("http://localhost"),
            expected("localhost:80", "", true, false)
        );
        assert_eq!(
            server("http://barekey.svc"),
            expected("barekey.svc:80", "", true, true)
        );
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
        ] {
            assert!(Endpoint::parse_url(bad).is_err(), "{bad:?}");
        }
    }
}
