//! The first message: a version and the limits of both sides.

use serde_json::{json, Map, Value};

use crate::error::ProtocolError;
use crate::limits::{MAX_FDS, MAX_TRANSFER, MAX_VERSION_DATA};

/// The version spoken here, 0.0: what QEMU 11.1 insists on.
pub(crate) const MAJOR: u16 = 0;
pub(crate) const MINOR: u16 = 0;

/// Bytes a client takes in one transfer if it does not say (vfio-user specification, VERSION).
const DEFAULT_MAX_TRANSFER: u64 = 1024 * 1024;

/// Names in version data.
const CAPABILITIES: &str = "capabilities";
const MAX_MSG_FDS: &str = "max_msg_fds";
const MAX_DATA_XFER_SIZE: &str = "max_data_xfer_size";
const WRITE_MULTIPLE: &str = "write_multiple";

/// A JSON object.
type Object = Map<String, Value>;

/// What both sides agreed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Agreement {
    /// Most bytes of data in a message to the client, never 0.
    pub(crate) max_transfer: usize,
    /// The client may send several writes in one message.
    pub(crate) write_multiple: bool,
}

/// Agrees with a client of this version and data, as they stand in its message: none at all, or a
/// JSON object that ends in NUL.
pub(crate) fn negotiate(major: u16, data: &[u8]) -> Result<Agreement, ProtocolError> {
    if major != MAJOR {
        return Err(ProtocolError::MajorVersion(major));
    }
    let client = capabilities(data)?;
    // How many descriptors the client takes does not matter: it is sent none.
    member(&client, MAX_MSG_FDS, Value::as_u64)?;
    let offered =
        member(&client, MAX_DATA_XFER_SIZE, Value::as_u64)?.unwrap_or(DEFAULT_MAX_TRANSFER);
    if offered == 0 {
        return Err(ProtocolError::VersionData);
    }
    Ok(Agreement {
        max_transfer: usize::try_from(offered).unwrap_or(MAX_TRANSFER).min(MAX_TRANSFER),
        write_multiple: member(&client, WRITE_MULTIPLE, Value::as_bool)?.unwrap_or(false),
    })
}

/// The client's capabilities, empty if it names none. Those that are not known here are ignored, as
/// the specification wants it.
fn capabilities(data: &[u8]) -> Result<Object, ProtocolError> {
    let Some((&last, json)) = data.split_last() else { return Ok(Object::new()) };
    if last != 0 || data.len() > MAX_VERSION_DATA {
        return Err(ProtocolError::VersionData);
    }
    let object: Object = serde_json::from_slice(json).map_err(|_| ProtocolError::VersionData)?;
    match object.get(CAPABILITIES) {
        None => Ok(Object::new()),
        Some(Value::Object(capabilities)) => Ok(capabilities.clone()),
        Some(_) => Err(ProtocolError::VersionData),
    }
}

/// A member of the type that `read` reads, if it is there at all.
fn member<T>(
    object: &Object,
    name: &str,
    read: impl FnOnce(&Value) -> Option<T>,
) -> Result<Option<T>, ProtocolError> {
    let member = |value| read(value).ok_or(ProtocolError::VersionData);
    object.get(name).map(member).transpose()
}

/// Our own data for the reply, ending in NUL. QEMU takes no reply that is longer than what it sent,
/// so defaults are left out.
pub(crate) fn reply_data(agreement: Agreement) -> Vec<u8> {
    let mut ours = json!({ MAX_MSG_FDS: MAX_FDS, MAX_DATA_XFER_SIZE: MAX_TRANSFER });
    if agreement.write_multiple {
        ours[WRITE_MULTIPLE] = true.into();
    }
    let mut text = json!({ CAPABILITIES: ours }).to_string().into_bytes();
    text.push(0);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What QEMU 11.1.3 sends, by its source.
    const QEMU: &str = "{\"capabilities\": {\"migration\": {\"max_bitmap_size\": 268435456, \
        \"pgsize\": 4096}, \"max_msg_fds\": 16, \"max_data_xfer_size\": 1048576, \"pgsizes\": 4096, \
        \"max_dma_maps\": 65535, \"write_multiple\": true}}\0";

    #[test]
    fn agrees_with_qemu() {
        let agreement = negotiate(0, QEMU.as_bytes()).unwrap();
        assert_eq!(agreement, Agreement { max_transfer: MAX_TRANSFER, write_multiple: true });
        let reply = reply_data(agreement);
        assert_eq!(
            reply,
            b"{\"capabilities\":{\"max_data_xfer_size\":65536,\"max_msg_fds\":16,\
              \"write_multiple\":true}}\0"
        );
        assert!(reply.len() <= QEMU.len());
    }

    #[test]
    fn data_may_be_absent_or_empty() {
        let agreement = Agreement { max_transfer: MAX_TRANSFER, write_multiple: false };
        for data in ["", "{}\0", "{\"capabilities\":{}}\0", "{\"capabilities\":{\"else\":[1]}}\0"] {
            assert_eq!(negotiate(0, data.as_bytes()), Ok(agreement), "{data:?}");
        }
    }

    #[test]
    fn the_smaller_transfer_size_counts() {
        let data = b"{\"capabilities\":{\"max_data_xfer_size\":512}}\0";
        assert_eq!(negotiate(0, data).map(|agreed| agreed.max_transfer), Ok(512));
    }

    #[test]
    fn malformed_data_are_refused() {
        let long = format!("{{\"a\":\"{}\"}}\0", "b".repeat(MAX_VERSION_DATA));
        let deep = format!("{}\0", "[".repeat(2000));
        let data = [
            "{}",
            "\0",
            "{\0",
            "[]\0",
            "{}\0\0",
            "7\0",
            "{\"capabilities\":7}\0",
            "{\"capabilities\":{\"max_msg_fds\":\"x\"}}\0",
            "{\"capabilities\":{\"max_data_xfer_size\":-1}}\0",
            "{\"capabilities\":{\"max_data_xfer_size\":0}}\0",
            "{\"capabilities\":{\"write_multiple\":1}}\0",
            &long,
            &deep,
        ];
        for data in data {
            let refused = Err(ProtocolError::VersionData);
            assert_eq!(negotiate(0, data.as_bytes()), refused, "{data:?}");
        }
        assert_eq!(negotiate(0, b"\xff\xff\0"), Err(ProtocolError::VersionData));
        assert_eq!(negotiate(1, b""), Err(ProtocolError::MajorVersion(1)));
    }
}
