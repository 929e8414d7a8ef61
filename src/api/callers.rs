//! From a request to a call: body, shape, credential, in this order, so that each refusal is the documented one.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, FromRequest, Request};
use axum::http::{HeaderMap, HeaderName, header, request};
use serde::de::DeserializeOwned;

use super::bodies::{header_bytes, parse, read_body};
use super::error::{ApiError, Code};
use super::exchange::{self, RequestId};
use super::lookups::too_many;
use super::{Api, limits};
use crate::domain::access::Caller;
use crate::domain::audit::Origin;
use crate::domain::shares::Share;
use crate::vault::credentials::{AuthenticateError, PresentedToken};

const REQUEST_KEY: HeaderName = HeaderName::from_static("x-barekey-request-key");

/// What a route asks, once every name in it is a name and every list is short enough.
pub(crate) trait Ask: Sized + Send {
    /// The body that it is made of.
    type Body: DeserializeOwned + Send;
    /// The longest body, in bytes.
    const BODY_BYTES_MAX: usize = limits::BODY_BYTES_MAX;
    /// Whether the route is for pods.
    const FOR_PODS: bool = false;

    /// Checks the shape.
    ///
    /// # Errors
    /// A 400 that names the field, the check and what would pass.
    fn shape(body: Self::Body) -> Result<Self, ApiError>;
}

/// A request that passed: who asks, from where, and what.
pub(crate) struct Call<A> {
    /// Who asks.
    pub(crate) caller: Caller,
    /// From where.
    pub(crate) origin: Origin,
    /// `x-barekey-request-key`, if it was sent.
    pub(crate) request_key: Option<String>,
    /// What.
    pub(crate) ask: A,
    /// Whose room its answer takes.
    pub(crate) address: Option<IpAddr>,
    /// The room of what was asked, which is in memory until this is dropped.
    pub(crate) room: Option<Share>,
}

impl<A: Ask> FromRequest<Api> for Call<A> {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Api) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let address = address(&parts);
        // The headers are in memory for as long as the body is waited for.
        let counted = limits::BODY_BYTES_COUNTED + header_bytes(&parts.headers);
        let mut room = api.bodies().take(address, counted);
        let bytes = read_body(body, A::BODY_BYTES_MAX, room.as_mut()).await?;
        let ask = A::shape(parse(&bytes)?)?;
        drop(bytes);
        let request_key = request_key(&parts.headers)?;
        let (caller, origin) = recognise(&parts, api, A::FOR_PODS).await?;
        Ok(Self {
            caller,
            origin,
            request_key,
            ask,
            address,
            room,
        })
    }
}

/// A request without a body, by anyone with a credential.
pub(crate) struct Visit {
    /// Who asks.
    pub(crate) caller: Caller,
    /// From where.
    pub(crate) origin: Origin,
}

impl FromRequest<Api> for Visit {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Api) -> Result<Self, ApiError> {
        let (parts, _) = request.into_parts();
        let (caller, origin) = recognise(&parts, api, false).await?;
        Ok(Self { caller, origin })
    }
}

/// The peer's address.
fn address(parts: &request::Parts) -> Option<IpAddr> {
    let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>();
    peer.map(exchange::address)
}

fn request_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(REQUEST_KEY) else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(text)
            if (1..=limits::REQUEST_KEY_BYTES_MAX).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_graphic()) =>
        {
            Ok(Some(text.to_owned()))
        }
        _ => Err(ApiError::new(
            Code::InvalidRequest,
            format!(
                "x-barekey-request-key must be 1 to {} visible ASCII characters",
                limits::REQUEST_KEY_BYTES_MAX
            ),
        )),
    }
}

/// The credential, and whose it is.
async fn recognise(
    parts: &request::Parts,
    api: &Api,
    pod_route: bool,
) -> Result<(Caller, Origin), ApiError> {
    let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>();
    let id = parts
        .extensions
        .get::<RequestId>()
        .cloned()
        .ok_or_else(ApiError::internal)?;
    let origin = exchange::origin(&parts.headers, peer, &id, pod_route);

    let Some(token) = bearer(&parts.headers) else {
        api.vault().count_unknown_caller();
        return Err(ApiError::new(
            Code::Unauthorized,
            "there is no credential: send the header `Authorization: Bearer …` with a token of barekey (bk_api_…)",
        ));
    };
    let address = address(parts);
    // Held until the credential is counted.
    let _lookup = api.lookups().begin(address, &token)?;
    match api.vault().authenticate(&token).await {
        Ok(caller) => {
            api.lookups().recognised(&token);
            Ok((caller, origin))
        }
        Err(error @ (AuthenticateError::Unknown | AuthenticateError::PodRefused { .. })) => {
            api.metrics().failed_token();
            if let Some(wait) = api.lookups().failed(address, &token) {
                return Err(too_many(wait));
            }
            api.vault().count_unknown_caller();
            Err(error.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// The text behind `Bearer `, if there is exactly one such header and it is short enough to be one.
fn bearer(headers: &HeaderMap) -> Option<PresentedToken> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    let sane = scheme.eq_ignore_ascii_case("bearer")
        && (1..=limits::CREDENTIAL_BYTES_MAX).contains(&token.len())
        && token.bytes().all(|byte| byte.is_ascii_graphic());
    sane.then(|| PresentedToken::new(token.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::metrics::HttpMetrics;
    use crate::api::{ApiSettings, environment};
    use crate::crypto::keys::MasterKey;
    use crate::domain::audit::Source;
    use crate::domain::shares::Shares;
    use crate::vault::{Clock, Vault, VaultSettings};
    use axum::body::Body;
    use axum::extract::State;
    use futures::FutureExt;
    use std::net::Ipv4Addr;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn a_bearer_is_one_header_with_one_visible_word() {
        let with = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            bearer(&headers).map(|token| token.reveal().to_owned())
        };
        assert_eq!(with(&["Bearer bk_api_x"]).as_deref(), Some("bk_api_x"));
        assert_eq!(with(&["bearer bk_api_x"]).as_deref(), Some("bk_api_x"));
        for bad in [
            &[][..],
            &[""],
            &["Bearer"],
            &["Bearer "],
            &["Basic abc"],
            &["bk_api_x"],
            &["Bearer a b"],
            &["Bearer a", "Bearer b"],
        ] {
            assert_eq!(with(bad), None, "{bad:?}");
        }
    }

    /// The API of a new vault, and an owner's token.
    async fn api_of(folder: &std::path::Path) -> (Api, String) {
        struct Stopped;
        impl Clock for Stopped {
            fn now_ms(&self) -> i64 {
                1_000
            }
        }
        let settings = VaultSettings {
            database: format!("sqlite:{}", folder.join("vault.db").display()),
            master_key: MasterKey::from_base64(&format!("{}=", "A".repeat(43))).unwrap(),
            accepted_risks: Vec::new(),
            value_bytes_max: 1024,
            pod_identity: None,
        };
        let vault = Vault::open(settings, Arc::new(Stopped)).await.unwrap();
        let origin = Origin {
            source: Source::Admin,
            ip: String::new(),
            user_agent: String::new(),
            request_id: "req_0".to_owned(),
        };
        let (_, made) = vault
            .bootstrap(&origin, &"acme".parse().unwrap())
            .await
            .unwrap();
        let metrics = HttpMetrics::register(&mut prometheus_client::registry::Registry::default());
        let api = Api::new(vault, ApiSettings { metrics });
        (api, made.token.reveal_text().unwrap().to_owned())
    }

    const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 1);

    /// A change of one variable, read from a request of [`PEER`].
    async fn change(api: &Api, token: &str) -> Call<environment::Change> {
        let body = serde_json::json!({"projectSlug": "shop", "stageSlug": "staging", "mode": "upsert",
            "entries": [{"name": "A", "kind": "secret", "value": "1"}]});
        let request = Request::builder()
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .extension(ConnectInfo(PEER))
            .extension(RequestId("req_1".to_owned()))
            .body(Body::from(body.to_string()))
            .unwrap();
        Call::from_request(request, api)
            .await
            .unwrap_or_else(|refused| panic!("{}", refused.message()))
    }

    #[tokio::test]
    async fn what_was_asked_takes_room_until_it_is_done_even_when_nobody_waits_for_the_answer() {
        let folder = tempfile::tempdir().unwrap();
        let (api, token) = api_of(folder.path()).await;
        let is_free = |shares: &Shares, share| shares.take(Some(PEER.ip()), share).is_some();
        let all_is_free = || {
            is_free(api.bodies(), limits::BODIES.address)
                && is_free(api.writes(), limits::WRITES.address)
        };
        let call = change(&api, &token).await;
        assert!(!all_is_free(), "it waits to be done");
        let mut writing = Box::pin(environment::write(State(api.clone()), call));
        assert!(writing.as_mut().now_or_never().is_none());
        drop(writing);
        assert!(!is_free(api.bodies(), limits::BODIES.address));
        assert!(!is_free(api.writes(), limits::WRITES.address));
        while !all_is_free() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn an_address_whose_changes_wait_is_told_to_come_again_and_another_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (api, token) = api_of(folder.path()).await;
        let _waiting = api.writes().take(Some(PEER.ip()), limits::WRITES.address);
        let call = change(&api, &token).await;
        let refused = environment::write(State(api.clone()), call).await.err();
        assert_eq!(refused.unwrap().code(), Code::RateLimited);
        let mut other = change(&api, &token).await;
        other.address = Some("192.0.2.2".parse().unwrap());
        let refused = environment::write(State(api.clone()), other).await.err();
        assert_eq!(
            refused.unwrap().code(),
            Code::EnvironmentNotFound,
            "it was let through"
        );
    }
}
