//! The API's JSON → objects of the model, one object at a time.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use serde::Deserializer;
use serde::de::DeserializeOwned;

use crate::model::convert::{self, Converted};
use crate::model::{Fault, Kind, Object};

/// Decodes and converts an object. What means nothing to the model is left out here, so that
/// nothing of it stays in memory.
///
/// # Errors
///
/// The field that the API's types, or the model, do not take.
pub(super) fn object<'de, D>(kind: Kind, json: D) -> Result<Converted<Object>, Fault>
where
    D: Deserializer<'de> + Copy,
{
    Ok(match kind {
        Kind::Service => {
            let decoded = decode::<core::Service, _>(json)?;
            convert::service(&decoded)?.map(|object| Object::Service(object.into()))
        }
        Kind::EndpointSlice => {
            let decoded = decode::<discovery::EndpointSlice, _>(json)?;
            convert::slice(&decoded)?.map(|object| Object::Slice(object.into()))
        }
        Kind::Node => {
            let decoded = decode::<core::Node, _>(json)?;
            convert::node(&decoded)?.map(|object| Object::Node(object.into()))
        }
        Kind::Pod => {
            let decoded = decode::<core::Pod, _>(json)?;
            convert::pod(&decoded)?.map(|object| Object::Pod(object.into()))
        }
        Kind::ServiceCidr => {
            let decoded = decode::<networking::ServiceCIDR, _>(json)?;
            convert::service_cidr(&decoded)?.map(|object| Object::ServiceCidr(object.into()))
        }
    })
}

fn decode<'de, T, D>(json: D) -> Result<T, Fault>
where
    T: DeserializeOwned,
    D: Deserializer<'de> + Copy,
{
    if let Ok(decoded) = T::deserialize(json) {
        return Ok(decoded);
    }
    // Keeping track of the path costs more than decoding, and only a fault needs it.
    serde_path_to_error::deserialize(json).map_err(|error| {
        let path = error.path().to_string();
        Fault::new(
            path,
            error.into_inner().to_string(),
            "write a value of the type that the Kubernetes API documents for this field",
        )
    })
}
