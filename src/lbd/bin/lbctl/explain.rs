//! `explain`: the packet that is asked about.
use clap::error::ErrorKind;
use clap::{Args, CommandFactory};

use lbd::control::protocol::Request;
use lbd::control::protocol::explanation::{Hex, Question};
use lbd::explain;
use lbd::flow::{Endpoint, Protocol};

use super::{Cli, Json};

#[derive(Args)]
pub(super) struct Explain {
    /// tcp, udp or sctp
    #[arg(value_name = "PROTO", required_unless_present = "hex")]
    protocol: Option<Protocol>,
    /// Who sends it
    #[arg(value_name = "SRC:PORT", value_parser = endpoint, required_unless_present = "hex")]
    source: Option<Endpoint>,
    /// Where it goes
    #[arg(value_name = "DST:PORT", value_parser = endpoint, required_unless_present = "hex")]
    destination: Option<Endpoint>,
    /// This very IP packet, as hexadecimal digits, instead of a first one (SYN, or a datagram)
    #[arg(long, value_name = "BYTES", conflicts_with_all = ["protocol", "source", "destination"])]
    hex: Option<Hex>,
    #[command(flatten)]
    pub(super) json: Json,
}

impl Explain {
    /// Does not return where there can be no such packet.
    pub(super) fn request(&self) -> Request {
        let packet = match (self.protocol, self.source, self.destination, &self.hex) {
            (Some(protocol), Some(source), Some(destination), None) => Question::First {
                protocol,
                source,
                destination,
            },
            (_, _, _, Some(hex)) => Question::Hex(hex.clone()),
            (_, _, _, None) => refuse(
                ErrorKind::MissingRequiredArgument,
                "expected PROTO SRC:PORT DST:PORT, or --hex BYTES",
            ),
        };
        if let Err(error) = explain::packet(&packet) {
            refuse(ErrorKind::ValueValidation, &error);
        }
        Request::Explain { packet }
    }
}

fn refuse(kind: ErrorKind, message: &str) -> ! {
    Cli::command().error(kind, message).exit()
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    let expected = |_| "expected ADDRESS:PORT, as 10.1.0.2:40000 or [fd00:1::2]:40000".to_owned();
    text.parse().map_err(expected)
}
