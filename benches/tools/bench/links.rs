//! What `ip` knows of the rig's links.
use crate::Outcome;
use crate::rig::{Place, shell};

/// A device's Ethernet address, as 02:00:00:00:00:01.
pub(crate) fn mac(place: Place, device: &str) -> Outcome<String> {
    let shown = shown(place, device)?;
    let mac = shown[0]["address"].as_str();
    Ok(mac.ok_or("a link has no address")?.to_owned())
}

/// The same as bytes.
pub(crate) fn mac_bytes(place: Place, device: &str) -> Outcome<[u8; 6]> {
    let text = mac(place, device)?;
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    bytes?
        .try_into()
        .map_err(|_length| format!("`{text}` is no Ethernet address").into())
}

/// A device's number.
pub(crate) fn number(place: Place, device: &str) -> Outcome<i32> {
    let number = shown(place, device)?[0]["ifindex"]
        .as_i64()
        .ok_or("a link has no number")?;
    Ok(i32::try_from(number)?)
}

fn shown(place: Place, device: &str) -> Outcome<serde_json::Value> {
    Ok(serde_json::from_str(&shell(
        place,
        &format!("ip -j link show dev {device}"),
    )?)?)
}
