//! What lbd says where the process or the host lacks something: all of it at once, before anything is changed.
use crate::rig::{Backend, Config, DIR, Family, Mode, Ran, Rig, Service, isolated, isolated_xdp};

const LBD: &str = env!("CARGO_BIN_EXE_lbd");
const CLIENT: &str = env!("CARGO_BIN_EXE_lbctl");

/// Both families, and node ports.
fn services() -> Vec<Service> {
    let both = Family::BOTH.map(|family| Service {
        node_port: Some(30_080),
        ..Service::web(family)
    });
    both.into()
}

/// Starts lbd by a command that ends before its arguments, and ends it once it answers.
fn start(rig: &Rig, config: &Config, prefix: &str) -> Ran {
    std::fs::write(format!("{DIR}/lbd.toml"), config.to_string()).expect("cannot write the configuration");
    let script = format!(
        "{prefix} {LBD} --config {DIR}/lbd.toml & lbd=$!
         until {CLIENT} --socket {DIR}/lbd.sock status >{DIR}/status 2>&1; do
             kill -0 $lbd 2>{DIR}/gone || break
             sleep 0.05
         done
         kill $lbd 2>{DIR}/gone; wait $lbd"
    );
    rig.sh("lb", &script)
}

/// With just these capabilities, as setpriv names them.
fn with(capabilities: &str) -> String {
    format!("setpriv --inh-caps=-all{capabilities} --bounding-set=-all{capabilities}")
}

#[test]
fn without_capabilities_and_with_read_only_sysctls_all_is_told_at_once() {
    isolated(|| {
        let rig = Rig::new();
        let before = rig.kernel_state();
        let lock = "mount -o bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys /proc/sys";
        rig.sh("lb", lock).ok();
        let ran = start(&rig, &Config::new(Mode::Ipvs, services()), &with(""));
        assert_eq!(ran.code, 1, "{ran:?}");
        let mut parts = vec![
            "CAP_NET_ADMIN",
            "sysctl net.ipv4.ip_forward is 0, must be 1",
            "sysctl net.ipv6.conf.all.forwarding is 0, must be 1",
            "sysctl net.ipv4.conf.default.accept_local is 0, must be 1",
            "--cap-add NET_ADMIN",
            "--sysctl net.ipv4.ip_forward=1",
            "--sysctl net.ipv6.conf.all.forwarding=1",
            "sudo setcap cap_net_admin",
            "AmbientCapabilities=CAP_NET_ADMIN",
        ];
        if Backend::of_this_run() == Backend::AfXdp {
            parts.push("CAP_NET_RAW, CAP_BPF, CAP_PERFMON");
        }
        for part in parts {
            assert!(ran.err.contains(part), "{part}: {}", ran.err);
        }
        rig.sh("lb", "umount /proc/sys").ok();
        assert_eq!(rig.kernel_state(), before);
    });
}

#[test]
fn af_xdp_starts_with_the_capabilities_that_its_message_names_and_no_others() {
    isolated_xdp(|| {
        let rig = Rig::new();
        let config = Config::xdp(Mode::Ipvs, services());
        let named = "net_admin net_raw bpf perfmon ipc_lock";
        let all: String = named.split(' ').map(|one| format!(",+{one}")).collect();
        let ran = start(&rig, &config, &with(&all));
        assert!(ran.code == 0 && ran.err.contains("lbd ready:"), "{ran:?}");
        for lacking in ["net_admin", "net_raw", "bpf", "perfmon"] {
            let ran = start(&rig, &config, &with(&all.replace(&format!(",+{lacking}"), "")));
            let named = format!("capabilities: CAP_{}\n", lacking.to_uppercase());
            assert!(ran.code == 1 && ran.err.contains(&named), "{ran:?}");
            assert!(
                !ran.err.contains("verifier") && !ran.err.contains("processed"),
                "{ran:?}"
            );
        }
        let little = format!("ulimit -l 64; {}", with(&all.replace(",+ipc_lock", "")));
        let ran = start(&rig, &config, &little);
        assert!(ran.code == 1 && ran.err.contains("LimitMEMLOCK=infinity"), "{ran:?}");
    });
}

#[test]
fn a_limit_of_open_files_that_may_be_raised_is_and_another_is_told() {
    isolated(|| {
        let rig = Rig::new();
        let config = Config::new(Mode::Ipvs, services());
        let raised = start(&rig, &config, "ulimit -Sn 24;");
        assert!(raised.code == 0 && raised.err.contains("lbd ready:"), "{raised:?}");
        let told = start(&rig, &config, "ulimit -n 24;");
        assert_eq!(told.code, 1, "{told:?}");
        for part in ["24 open files", "--ulimit nofile=", "LimitNOFILE="] {
            assert!(told.err.contains(part), "{part}: {}", told.err);
        }
        assert!(!told.err.contains("modprobe"), "{}", told.err);
    });
}
