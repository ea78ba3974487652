//! Certificates: an authority of the test's own, and what it has signed.

use std::sync::{Arc, Mutex};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::error::{Error, Result};

use super::shared::lock;

/// An authority that signs certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate, PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: String,
    /// The certificate, DER.
    pub der: Vec<u8>,
    key_der: Vec<u8>,
}

/// What a server shows and whom it believes, at present.
#[derive(Debug)]
pub(super) struct Tls {
    names: Vec<String>,
    http2: bool,
    now: Mutex<Now>,
}

#[derive(Debug)]
struct Now {
    /// All so far, the present one last: clients may still show what an earlier one signed.
    authorities: Vec<Authority>,
    config: Arc<ServerConfig>,
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Invalid(format!("{what}: {error}"))
}

impl Authority {
    /// A new one of this name.
    pub fn new(name: &str) -> Result<Self> {
        let what = |e: rcgen::Error| failed("make a certificate authority", &e);
        let mut params = CertificateParams::new(Vec::new()).map_err(what)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = KeyPair::generate().map_err(what)?;
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(what)?;
        Ok(Self { issuer })
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for a server of these names and addresses.
    pub fn server(&self, names: &[String]) -> Result<Identity> {
        self.issue("server", None, names, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A certificate for a client: user and group.
    pub fn client(&self, user: &str, group: Option<&str>) -> Result<Identity> {
        self.issue(user, group, &[], ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(
        &self,
        name: &str,
        group: Option<&str>,
        names: &[String],
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Identity> {
        let what = |e: rcgen::Error| failed(&format!("make a certificate for {name}"), &e);
        let mut params = CertificateParams::new(names).map_err(what)?;
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(what)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(what)?;
        Ok(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            der: certificate.der().to_vec(),
            key_der: key.serialize_der(),
        })
    }
}

impl Identity {
    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from(self.der.clone())]
    }

    pub(super) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key_der.clone()).into()
    }
}

impl Tls {
    pub(super) fn new(names: &[String], http2: bool) -> Result<Self> {
        let authorities = vec![Authority::new("testkit-ca-1")?];
        let config = config(&authorities, names, http2)?;
        Ok(Self {
            names: names.to_vec(),
            http2,
            now: Mutex::new(Now {
                authorities,
                config,
            }),
        })
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&lock(&self.now).config)
    }

    /// Runs `work` with the present authority.
    pub(super) fn authority<T>(&self, work: impl FnOnce(&Authority) -> Result<T>) -> Result<T> {
        let now = lock(&self.now);
        let authority = now.authorities.last();
        work(authority.ok_or_else(|| Error::Invalid("the server has no authority".to_owned()))?)
    }

    /// A new serving certificate, by a new authority if `authority` is said.
    pub(super) fn rotate(&self, authority: bool) -> Result<()> {
        let mut now = lock(&self.now);
        if authority {
            let name = format!("testkit-ca-{}", now.authorities.len() + 1);
            now.authorities.push(Authority::new(&name)?);
        }
        now.config = config(&now.authorities, &self.names, self.http2)?;
        Ok(())
    }
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn config(authorities: &[Authority], names: &[String], http2: bool) -> Result<Arc<ServerConfig>> {
    let last = authorities.last();
    let last = last.ok_or_else(|| Error::Invalid("the server has no authority".to_owned()))?;
    let identity = last.server(names)?;
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        let added = roots.add(authority.issuer.der().clone());
        added.map_err(|e| failed("believe the authority", &e))?;
    }
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| failed("set up client certificates", &e))?;
    let what = |e: rustls::Error| failed("set up TLS", &e);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(what)?
        .with_client_cert_verifier(clients)
        .with_single_cert(identity.chain(), identity.private_key())
        .map_err(what)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    if http2 {
        config.alpn_protocols.insert(0, b"h2".to_vec());
    }
    Ok(Arc::new(config))
}
