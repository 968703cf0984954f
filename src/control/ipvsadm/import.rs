//! `ipvsadm -Sn` turned into a configuration.
use super::combinations::Command;
use super::options::Options;
use lbd_state::config::edit::{self, AffinityChange, BackendFields, Edit, Mistake, ServiceFields, Which};
use lbd_state::config::{Config, parse, to_toml};

/// A configuration, and what of the saved rules is not in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// TOML that lbd takes.
    pub toml: String,
    /// One comment for each line that could not be carried over, or not wholly: where, what and why.
    pub remarks: Vec<String>,
}

/// Reads what `ipvsadm -Sn` or `ipvsadm-save -n` printed; `file` is for remarks.
///
/// # Errors
/// When nothing at all could be read.
pub fn import(file: &str, text: &str) -> Result<Imported, String> {
    let nothing = || format!("{file}: no line of it is an ipvsadm rule: give the output of `ipvsadm -Sn`");
    let mut importer = Importer {
        config: parse("", "mode = \"ipvs\"\n").ok().ok_or_else(nothing)?.config,
        servers: 0,
        remarks: Vec::new(),
    };
    let mut rules = 0;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Err(why) = importer.line(line) {
            importer
                .remarks
                .push(format!("# {file}:{number}: not carried over: {line}: {why}"));
        } else {
            rules += 1;
        }
    }
    if rules == 0 && !importer.remarks.is_empty() {
        return Err([vec![nothing()], importer.remarks].concat().join("\n"));
    }
    if importer.servers > 0 {
        importer.remarks.push(format!(
            "# {file}: ipvsadm does not save thresholds (-x, -y): where servers had some, add upper_threshold and lower_threshold"
        ));
    }
    Ok(Imported {
        toml: to_toml(&importer.config),
        remarks: importer.remarks,
    })
}

struct Importer {
    config: Config,
    servers: usize,
    remarks: Vec<String>,
}

impl Importer {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let words = line.split_whitespace().filter(|word| *word != "ipvsadm");
        let words: Vec<String> = words.map(str::to_owned).collect();
        let options = Options::parse("ipvsadm", &words).map_err(|exit| exit.message)?;
        let edit = match options.command {
            Command::AddService => service(&options)?,
            Command::AddServer => server(&options)?,
            Command::EditService
            | Command::DeleteService
            | Command::Clear
            | Command::List
            | Command::DeleteServer
            | Command::EditServer
            | Command::Set(_)
            | Command::StartDaemon
            | Command::StopDaemon
            | Command::Restore
            | Command::Save
            | Command::Zero
            | Command::Help
            | Command::Version => return Err("only -A and -a make a configuration".to_owned()),
        };
        let changed = edit::apply(&self.config, &[], std::slice::from_ref(&edit));
        self.config = changed.map_err(|refusal| match refusal.mistake {
            Mistake::NoSuchService => "its service was not carried over".to_owned(),
            Mistake::ServiceExists | Mistake::NoSuchBackend | Mistake::BackendExists | Mistake::Invalid => {
                refusal.message
            }
        })?;
        self.servers += usize::from(options.command == Command::AddServer);
        Ok(())
    }
}

fn service(options: &Options) -> Result<Edit, String> {
    let (protocol, address) = options
        .place()
        .ok_or("lbd does not see firewall marks: give an address with -t or -u")?;
    let unknown = || format!("lbd has no scheduler {:?}", options.scheduler);
    let scheduler = options.scheduler.parse().ok().ok_or_else(unknown)?;
    if options.has_engine {
        return Err("lbd has no persistence engines".to_owned());
    }
    let persistence = options.persistence().map_err(|exit| exit.message)?;
    let fields = ServiceFields {
        protocol: Some(protocol),
        address: Some(address),
        scheduler: Some(scheduler),
        flags: Some(options.flag_words(scheduler).map_err(|exit| exit.message)?),
        persistence: persistence.map(|(timeout, prefix_length)| AffinityChange::On {
            timeout_seconds: u64::from(timeout),
            prefix_length: Some(prefix_length),
        }),
        ..ServiceFields::default()
    };
    Ok(Edit::AddService { fields })
}

/// `ipvsadm -R` would put each new server at the head of the list, so the configuration has the last one first: the
/// same commands make the same choices.
fn server(options: &Options) -> Result<Edit, String> {
    options.check_forwarding().map_err(|exit| exit.message)?;
    let (protocol, address) = options.place().ok_or("its service was not carried over")?;
    Ok(Edit::AddBackend {
        service: Which::At { protocol, address },
        address: options.server,
        fields: BackendFields {
            weight: Some(options.weight),
            upper_threshold: Some(options.upper_threshold),
            lower_threshold: Some(options.lower_threshold),
        },
        first: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lbd_core::flow::Protocol;

    #[test]
    fn a_saved_table_becomes_a_configuration_in_which_the_last_server_is_the_first() {
        let saved = "-A -t 10.9.9.9:80 -s sh -p 300 -M 255.255.255.0 -b sh-fallback,sh-port\n\
                     -a -t 10.9.9.9:80 -r 10.2.1.2:80 -m -w 1\n\
                     -a -t 10.9.9.9:80 -r 10.2.2.2:80 -m -w 3\n";
        let imported = import("saved", saved).unwrap();
        let config = parse("", &imported.toml).unwrap().config;
        let [service] = &config.policy.services[..] else {
            panic!()
        };
        assert_eq!(service.name, "tcp 10.9.9.9:80");
        let backends: Vec<String> = service
            .backends
            .iter()
            .map(|backend| backend.address.to_string())
            .collect();
        assert_eq!(backends, ["10.2.2.2:80", "10.2.1.2:80"]);
        assert_eq!((service.backends[0].weight, service.flags.port), (3, true));
        assert_eq!(service.persistence.unwrap().prefix_length, 24);
        assert_eq!(
            imported.remarks.len(),
            1,
            "thresholds are not saved: {:?}",
            imported.remarks
        );
    }

    #[test]
    fn sctp_services_are_carried_over() {
        let saved = "-A --sctp-service 10.9.9.9:3868 -s nq\n-a --sctp-service 10.9.9.9:3868 -r 10.2.1.2:3868 -m -w 1\n";
        let config = parse("", &import("saved", saved).unwrap().toml).unwrap().config;
        let [service] = &config.policy.services[..] else {
            panic!()
        };
        assert_eq!((service.protocol, service.backends.len()), (Protocol::Sctp, 1));
    }

    #[test]
    fn what_cannot_be_carried_over_is_told_line_by_line() {
        let saved = "# a comment\n\
                     -A -t 10.9.9.9:80 -s rr\n\
                     -a -t 10.9.9.9:80 -r 10.2.1.2:80 -g -w 1\n\
                     -A -f 7 -s wlc\n\
                     -a -f 7 -r 10.2.3.2:0 -m -w 1\n\
                     -A -t 10.9.9.9:82 -s rr -p 5 -M 255.0.255.0\n\
                     -a -t 10.9.9.9:82 -r 10.2.3.2:0 -m -w 1\n\
                     what is this\n";
        let imported = import("saved", saved).unwrap();
        let places: Vec<&str> = imported
            .remarks
            .iter()
            .map(|line| line.split(": ").next().unwrap())
            .collect();
        assert_eq!(
            places,
            [
                "# saved:3",
                "# saved:4",
                "# saved:5",
                "# saved:6",
                "# saved:7",
                "# saved:8"
            ]
        );
        assert!(imported.remarks[0].contains("-m (masquerading)"), "{imported:?}");
        assert_eq!(parse("", &imported.toml).unwrap().config.policy.services.len(), 1);
    }

    #[test]
    fn a_file_of_something_else_is_refused() {
        let error = import("saved", "*nat\nCOMMIT\n").unwrap_err();
        assert!(error.starts_with("saved: no line of it is an ipvsadm rule"), "{error}");
    }
}
