//! Messages and exit codes, and what only lbd says.
use super::lab::{Answer, Lab};
use lbd_core::verdict::Verdict;
use lbd_testkit::packets::sctp;

fn fails(lab: &mut Lab, arguments: &str) -> (u8, String) {
    let output = lab.ipvsadm(arguments);
    assert_eq!(output.out, "", "{arguments}");
    (output.code, output.err.trim_end().to_owned())
}

fn with_service() -> Lab {
    let mut lab = Lab::new();
    lab.ok("-A -t 10.9.9.9:80 -s rr");
    lab.ok("-a -t 10.9.9.9:80 -r 10.2.1.2:80 -m");
    lab
}

#[test]
fn what_the_kernel_refuses_is_told_in_its_words_with_255() {
    let mut lab = with_service();
    for (arguments, message) in [
        ("-A -t 10.9.9.9:80", "Service already exists"),
        ("-A -t 10.9.9.9:80 -s best", "Service already exists"),
        ("-A -t 10.9.9.9:81 -s best", "Scheduler or persistence engine not found"),
        (
            "-A -u 10.9.9.9:81 -p 60 --pe sip",
            "Scheduler or persistence engine not found",
        ),
        ("-E -t 10.9.9.9:81", "No such service"),
        ("-E -t 10.9.9.9:80 -s best", "Scheduler or persistence engine not found"),
        ("-D -u 10.9.9.9:80", "No such service"),
        ("-D -f 7", "No such service"),
        ("-Z -t 10.9.9.9:81", "No such service"),
        ("-a -t 10.9.9.9:81 -r 10.2.1.2 -m", "Service not defined"),
        ("-a -t 10.9.9.9:80 -r 10.2.1.2 -m", "Destination already exists"),
        (
            "-a -t 10.9.9.9:80 -r 10.2.2.2 -m -x 1 -y 2",
            "Numerical result out of range",
        ),
        ("-e -t 10.9.9.9:81 -r 10.2.1.2 -m -y 2", "Service not defined"),
        ("-e -t 10.9.9.9:80 -r 10.2.2.2 -m", "No such destination"),
        ("-d -t 10.9.9.9:80 -r 10.2.2.2", "No such destination"),
        ("-d -t 10.9.9.9:81 -r 10.2.1.2", "Service not defined"),
        ("--stop-daemon master", "No daemon is running"),
    ] {
        assert_eq!(fails(&mut lab, arguments), (255, message.to_owned()), "{arguments}");
    }
    assert_eq!(fails(&mut lab, "-Ln -t 10.9.9.9:81"), (1, "No such service".to_owned()));
}

#[test]
fn bad_usage_is_told_in_the_words_of_ipvsadm_with_2() {
    let mut lab = with_service();
    for (arguments, message) in [
        (
            "-A",
            "You need to supply the 'service-address' option for the 'add-service' command",
        ),
        (
            "-a -t 10.9.9.9:80",
            "You need to supply the 'real-server' option for the 'add-server' command",
        ),
        (
            "-A -t 10.9.9.9:80 -w 3",
            "Illegal 'weight' option with the 'add-service' command",
        ),
        ("-C -n", "Illegal 'numeric' option with the 'flush' command"),
        (
            "-L -c -t 10.9.9.9:80",
            "The option 'service-address' conflicts with the 'connection' option in the 'list' command",
        ),
        ("-L -c --stats", "options conflicts in the list command"),
        (
            "-A -t 10.9.9.9:80 -t 10.9.9.9:81",
            "multiple 'service-address' options specified",
        ),
        ("-A -t 10.9.9.9", "Zero port specified for non-persistent service"),
        (
            "-A -t 10.9.9.9:80 -o",
            "One-Packet Scheduling is only for UDP virtual services",
        ),
        ("-A -t 80", "illegal virtual server address[:port] specified"),
        (
            "-a -t 10.9.9.9:80 -r [::1] -m",
            "illegal real server address[:port] specified",
        ),
        (
            "-a -t 10.9.9.9:80 -r [::1]:80 -m",
            "Different address family is allowed only for tunneling servers",
        ),
        (
            "-a -t 10.9.9.9:80 -r 10.2.1.2 -m -w 2147483648",
            "illegal weight specified",
        ),
        (
            "-a -t 10.9.9.9:80 -r 10.2.1.2 -m --tun-type gre",
            "Tunnel options conflict with forward method",
        ),
        ("-A -t 10.9.9.9:80 -p 0", "invalid timeout value `0' specified"),
        (
            "-A -t 10.9.9.9:80 -s rr -b sh-port",
            "incompatible scheduler flag `sh-port'",
        ),
        ("-A -t 10.9.9.9:80 -b often", "invalid scheduler flag `often'"),
        ("-A -f 0", "invalid fwmark value `0' specified"),
        ("--set 1 2", "--set option requires 3 timeout values"),
        ("-L -n more", "unexpected argument more"),
        ("-A -h", "invalid option `-h'"),
        ("-AnL", "invalid option `-AnL'"),
        ("-A --zero", "invalid option `--zero'"),
        ("-A --start-daemon master", "invalid option `master'"),
        ("-A --start-daemon=master", "invalid option `--start-daemon=master'"),
        ("-A -f 7 -6 -p -M 129", "illegal ipv6 netmask specified"),
        (
            "-a -f 7 -6 -r 10.2.1.2 -m",
            "Different address family is allowed only for tunneling servers",
        ),
    ] {
        assert_eq!(fails(&mut lab, arguments), (2, message.to_owned()), "{arguments}");
    }
}

#[test]
fn options_that_do_not_exist_are_told_with_255() {
    let mut lab = with_service();
    let help = "Try `ipvsadm -h' or 'ipvsadm --help' for more information.";
    for (arguments, message) in [
        ("-n", help),
        ("-Q", help),
        ("-A=", help),
        ("-h=", help),
        ("nonsense", help),
        ("-L -Q", "-Q: unknown option"),
        ("-LnQ", "-LnQ: unknown option"),
        ("-L -nc=3", "-nc=3: option does not take an argument"),
        ("-L --wide", "--wide: unknown option"),
        ("-A -t", "-t: missing argument"),
        ("-L --stats=3", "--stats=3: option does not take an argument"),
    ] {
        assert_eq!(fails(&mut lab, arguments), (255, message.to_owned()), "{arguments}");
    }
}

#[test]
fn what_lbd_cannot_do_is_refused_with_the_remedy_and_changes_nothing() {
    let mut lab = with_service();
    let before = lab.table();
    for (arguments, what) in [
        (
            "-a -t 10.9.9.9:80 -r 10.2.2.2",
            "the default of ipvsadm) is not supported: give -m",
        ),
        (
            "-a -t 10.9.9.9:80 -r 10.2.2.2 -g",
            "direct routing (-g) is not supported: give -m",
        ),
        (
            "-e -t 10.9.9.9:80 -r 10.2.1.2 -i",
            "tunneling (-i) is not supported: give -m",
        ),
        ("-A -f 7", "firewall marks: -f is not supported; give an address"),
        (
            "-A -t 10.9.9.9:82 -p 5 -M 255.0.255.0",
            "the netmask 255.0.255.0 has holes",
        ),
        ("--start-daemon master", "--start-daemon is not supported"),
        ("-A -t 10.9.9.9:82 -s rr -b flag-1", "has no `flag-1'"),
    ] {
        let (code, message) = fails(&mut lab, arguments);
        assert_eq!(code, 2, "{message}");
        assert!(message.contains(what), "{message}");
    }
    assert_eq!(lab.table(), before);
}

#[test]
fn options_may_be_bundled_long_or_with_their_value_attached() {
    let mut lab = Lab::new();
    lab.ok("--add-service --tcp-service=10.9.9.9:http --scheduler wlc --persistent");
    lab.ok("-at10.9.9.9:80 -r10.2.1.2 -mw=7");
    assert_eq!(
        lab.ok("-Sn"),
        "-A -t 10.9.9.9:80 -s wlc -p 360\n-a -t 10.9.9.9:80 -r 10.2.1.2:80 -m -w 7\n"
    );
}

#[test]
fn a_saved_table_is_restored_as_it_was_but_for_the_order_of_its_servers() {
    let mut lab = Lab::new();
    let saved = "-A -t 10.9.9.9:80 -s mh -p 60 -M 255.255.255.0 -b mh-fallback,mh-port\n\
                 -a -t 10.9.9.9:80 -r 10.2.1.2:80 -m -w 1\n\
                 -a -t 10.9.9.9:80 -r 10.2.2.2:8080 -m -w 0\n\
                 -A -u 10.9.9.9:53 -s rr -o\n\
                 -A -t [fd00::9]:0 -s lc -p 360 -M 64\n\
                 -a -t [fd00::9]:0 -r [fd00:2::2]:0 -m -w 1\n";
    let output = lab.restore("-R", saved);
    assert_eq!((output.code, output.err.as_str()), (0, ""));
    assert_eq!(lab.ok("-Sn"), saved);
    assert_eq!(
        lab.config().policy.services[0].backends[0].address.to_string(),
        "10.2.2.2:8080"
    );
}

#[test]
fn a_restore_does_what_it_can_and_ends_at_bad_usage() {
    let mut lab = with_service();
    let input = "-A -t 10.9.9.9:80 -s rr\n-A -t 10.9.9.9:81 -s rr\n\n-D -t 10.9.9.9:99\nipvsadm -A -t 10.9.9.9:82";
    let output = lab.restore("-R", input);
    assert_eq!(output.err, "Service already exists\nNo such service\n");
    assert_eq!(output.code, 0, "that of the last line");
    assert_eq!(lab.table().len(), 4, "three services, one server");
    let output = lab.restore("-R", "-A -t 10.9.9.9:83\n-A -t 10.9.9.9:84 -w 3\n-A -t 10.9.9.9:85\n");
    assert_eq!(output.code, 2);
    assert_eq!(output.err, "Illegal 'weight' option with the 'add-service' command\n");
    assert_eq!(lab.table().len(), 5, "the line before it was done");
}

#[test]
fn a_long_table_is_restored_in_requests_that_lbd_reads() {
    let rule = |port: u16| format!("-A -t 10.9.9.9:{port} -s rr\n-a -t 10.9.9.9:{port} -r 10.2.1.2:{port} -m -w 1\n");
    let saved: String = (1..=800).map(rule).collect();
    let mut lab = Lab::new();
    assert_eq!(lab.restore("-R", &saved).err, "");
    assert_eq!(lab.ok("-Sn"), saved);
    assert!(lab.largest_request < 1 << 19, "{}", lab.largest_request);
}

#[test]
fn timeouts_are_set_and_0_leaves_one_as_it_is() {
    let mut lab = Lab::new();
    lab.ok("--set 7200 0 60");
    assert_eq!(lab.ok("-L --timeout"), "Timeout (tcp tcpfin udp): 7200 120 60\n");
}

#[test]
fn zero_counts_from_zero_again() {
    let mut lab = with_service();
    lab.visit("10.1.0.2:40000", "10.9.9.9:80");
    lab.ok("-A -t 10.9.9.9:81");
    lab.ok("-Z -t 10.9.9.9:81");
    assert!(
        lab.ok("-Ln --stats")
            .contains("10.9.9.9:80                         1        6        3")
    );
    lab.ok("-Z");
    let stats = lab.ok("-Ln --stats");
    assert!(
        stats.contains("  -> 10.2.1.2:80                         0        0        0        0        0\n"),
        "{stats}"
    );
}

#[test]
fn one_service_is_listed_without_the_version() {
    let mut lab = with_service();
    assert_eq!(
        lab.ok("-Ln -t 10.9.9.9:80"),
        "Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n\
         TCP  10.9.9.9:80 rr\n  -> 10.2.1.2:80                  Masq    1      0          0         \n"
    );
    let wide = lab.ok("-Ln --persistent-conn -t 10.9.9.9:80");
    assert_eq!(
        wide,
        "Prot LocalAddress:Port            Weight    PersistConn ActiveConn InActConn \n  -> RemoteAddress:Port\n\
         TCP  10.9.9.9:80 rr\n  -> 10.2.1.2:80                  1         0           0          0         \n"
    );
}

#[test]
fn a_service_of_all_ports_answers_on_each_and_keeps_a_client_at_one_server() {
    let mut lab = Lab::new();
    lab.ok("-A -t 10.9.9.9:0 -s rr -p 60");
    lab.ok("-a -t 10.9.9.9:0 -r 10.2.1.2:0 -m");
    lab.ok("-a -t 10.9.9.9 -r 10.2.2.2 -m");
    lab.ok("-A -t 10.9.9.9:443 -s rr");
    lab.ok("-a -t 10.9.9.9:443 -r 10.2.3.2:8443 -m");
    let from = |server: &str| Answer::From(server.parse().unwrap());
    assert_eq!(lab.visit("10.1.0.2:40000", "10.9.9.9:80"), from("10.2.2.2:80"));
    assert_eq!(lab.visit("10.1.0.2:40001", "10.9.9.9:8080"), from("10.2.2.2:8080"));
    assert_eq!(
        lab.visit("10.1.0.2:40002", "10.9.9.9:443"),
        from("10.2.3.2:8443"),
        "its own service"
    );
    assert_eq!(lab.visit("10.1.0.3:40000", "10.9.9.9:80"), from("10.2.1.2:80"));
    let flows = lab.flows();
    let templates: Vec<&String> = flows.iter().filter(|line| line.contains("ASSURED")).collect();
    assert_eq!(
        templates,
        [
            "TCP 01:00 ASSURED 10.1.0.2:0 10.9.9.9:0 10.2.2.2:0",
            "TCP 01:00 ASSURED 10.1.0.3:0 10.9.9.9:0 10.2.1.2:0"
        ]
    );
    let servers = lab.ok("-Ln --persistent-conn -t 10.9.9.9:0");
    assert!(
        servers.contains("10.2.2.2:0                   1         1           0          2"),
        "{servers}"
    );
}

#[test]
fn with_one_packet_scheduling_each_datagram_has_its_own_choice_and_its_answer_comes_back() {
    let mut lab = Lab::new();
    lab.ok("-A -u 10.9.9.9:53 -s rr -o");
    lab.ok("-a -u 10.9.9.9:53 -r 10.2.1.2:53 -m");
    lab.ok("-a -u 10.9.9.9:53 -r 10.2.2.2:53 -m");
    assert_eq!(lab.table()[0], "UDP  10.9.9.9:53 rr ops");
    let servers: Vec<Answer> = (0..4).map(|_| lab.ask("10.1.0.2:40000", "10.9.9.9:53")).collect();
    let from = |server: &str| Answer::From(server.parse().unwrap());
    let (first, second) = (from("10.2.2.2:53"), from("10.2.1.2:53"));
    assert_eq!(servers, [first.clone(), second.clone(), first, second]);
}

#[test]
fn an_sctp_service_is_listed_saved_restored_and_shows_its_associations() {
    let saved = "-A --sctp-service 10.9.9.9:3868 -s rr\n-a --sctp-service 10.9.9.9:3868 -r 10.2.1.2:3868 -m -w 1\n";
    let mut lab = Lab::new();
    assert_eq!(lab.restore("-R", saved).err, "");
    assert_eq!(lab.ok("-Sn"), saved);
    lab.associate("10.1.0.2:40000", "10.9.9.9:3868");
    let (verdict, _) = lab.send(&sctp("10.1.0.2:40001", "10.9.9.9:3868", 1));
    assert_eq!(verdict, Verdict::Forward);
    assert_eq!(
        lab.table(),
        [
            "SCTP 10.9.9.9:3868 rr",
            "  -> 10.2.1.2:3868                Masq    1      1          1         "
        ]
    );
    assert_eq!(
        lab.flows(),
        [
            "SCTP 00:04 INIT1 10.1.0.2:40001 10.9.9.9:3868 10.2.1.2:3868",
            "SCTP 15:00 ESTABLISHED 10.1.0.2:40000 10.9.9.9:3868 10.2.1.2:3868"
        ]
    );
}
