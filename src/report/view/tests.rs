use expect_test::expect;

use super::*;
use crate::report::json::json_ok;
use crate::state::record::{RestartRecord, SourceRecord};

fn record(name: &str, last: u8) -> MachineRecord {
    MachineRecord {
        schema: 1,
        name: name.to_owned(),
        group: "node".to_owned(),
        index: last.into(),
        arch: "x86_64".to_owned(),
        accel: AccelRecord::Tcg,
        accel_reason: "KVM does not work here (no guest came up within 2 s)".to_owned(),
        uuid: "a".to_owned(),
        board: None,
        qemu: PathBuf::from("/usr/bin/qemu-system-x86_64"),
        cpus: 1,
        memory_mib: 512,
        firmware: None,
        tpm: None,
        shares: Vec::new(),
        kernel: None,
        disk: None,
        data_disks: Vec::new(),
        ignition: true,
        ignition_transport: None,
        mac: format!("52:54:00:00:00:{last:02x}"),
        ip: Ipv4Addr::new(10, 80, 1, last),
        mtu: None,
        ports: vec![PortRecord {
            bind: Ipv4Addr::LOCALHOST,
            host: 8080 + u16::from(last),
            guest: 80,
        }],
        restart: RestartRecord::OnFailure,
        image: "tiny".to_owned(),
        identity: "b".to_owned(),
        etcd: None,
        reports: true,
    }
}

fn status(name: &str, state: StateRecord, reason: &str) -> MachineStatus {
    MachineStatus {
        name: name.to_owned(),
        state,
        reason: reason.to_owned(),
        phase: "kernel".to_owned(),
        pid: None,
        addresses: Vec::new(),
        report: None,
        started_at: None,
        notes: Vec::new(),
    }
}

fn cluster() -> ClusterView {
    let mut ready = status("node-1", StateRecord::Ready, "");
    ready.pid = Some(4711);
    ready.started_at = Some("2026-01-02T03:04:05Z".to_owned());
    for source in [SourceRecord::Lease, SourceRecord::Report] {
        ready.addresses.push(SeenRecord {
            ip: Ipv4Addr::new(10, 80, 1, 11).into(),
            source,
            expires: None,
        });
    }
    let failed = status("node-2", StateRecord::Failed, "emergency shell: \x1b[2Jno");
    let files = MachineFiles {
        folder: PathBuf::from("/m"),
        sockets: PathBuf::from("/s"),
        disks: PathBuf::from("/d"),
    };
    let damaged = status("node-3", StateRecord::Damaged, "machine.json is empty");
    ClusterView {
        cluster: "demo".to_owned(),
        spec: PathBuf::from("/home/ann/kiln.yaml"),
        network: NetworkView {
            mode: ModeRecord::Fabric,
            reason: "`namespace` is not built yet".to_owned(),
            subnet: "10.80.1.0/24".parse().ok(),
            subnet6: Some("fd00:1:2::/64".parse().unwrap()),
            domain: "demo.kiln".to_owned(),
            uplink: String::new(),
            notes: Vec::new(),
            isolated: false,
        },
        supervisor: SupervisorView { pid: Some(42) },
        machines: vec![
            MachineView::new(
                ModeRecord::Fabric,
                Some(&record("node-1", 11)),
                &ready,
                &files,
            ),
            MachineView::new(
                ModeRecord::Fabric,
                Some(&record("node-2", 12)),
                &failed,
                &files,
            ),
            MachineView::new(ModeRecord::Fabric, None, &damaged, &files),
        ],
        kept_disks: Vec::new(),
    }
}

#[test]
fn ps_shows_each_machine_on_one_line() {
    expect![[r#"
        NAME    STATE    ARCH    ACCEL  ADDRESS     PORTS               REASON
        node-1  ready    x86_64  tcg    10.80.1.11  127.0.0.1:8091->80  -
        node-2  failed   x86_64  tcg    -           127.0.0.1:8092->80  emergency shell: \x1b[2Jno
        node-3  damaged  -       -      -           -                   machine.json is empty
    "#]]
    .assert_eq(&cluster().ps_table(Style::PLAIN));
}

#[test]
fn up_ends_with_the_way_in() {
    expect![[r#"
        NAME    STATE    ADDRESS     PORTS               ENTER
        node-1  ready    10.80.1.11  127.0.0.1:8091->80  kiln -c demo ssh node-1
        node-2  failed   -           127.0.0.1:8092->80  kiln -c demo console node-2
        node-3  damaged  -           -                   -
    "#]]
    .assert_eq(&cluster().up_table(Style::PLAIN, "kiln -c demo"));
}

#[test]
fn ip_shows_what_was_seen_and_what_is_reserved() {
    expect![[r#"
        NAME    ADDRESS     SOURCE  RESERVED
        node-1  10.80.1.11  lease   10.80.1.11
        node-2  -           -       10.80.1.12
        node-3  -           -       -
    "#]]
    .assert_eq(&cluster().ip_table(Style::PLAIN));
}

#[test]
fn programs_get_every_field() {
    expect![[r#"
        {"schema":1,"ok":true,"result":{"cluster":"demo","spec":"/home/ann/kiln.yaml","network":{"mode":"fabric","reason":"`namespace` is not built yet","subnet":"10.80.1.0/24","subnet6":"fd00:1:2::/64","domain":"demo.kiln","uplink":"","notes":[],"isolated":false},"supervisor":{"pid":42},"machines":[{"name":"node-1","arch":"x86_64","accel":"tcg","accel_reason":"KVM does not work here (no guest came up within 2 s)","state":"ready","reason":"","phase":"kernel","ready":true,"pid":4711,"mac":"52:54:00:00:00:0b","reserved_ip":"10.80.1.11","addresses":[{"ip":"10.80.1.11","source":"lease","expires":null},{"ip":"10.80.1.11","source":"report","expires":null}],"ports":[{"bind":"127.0.0.1","host":8091,"guest":80}],"image":"tiny","disks":[],"shares":[],"started_at":"2026-01-02T03:04:05Z","notes":[]},{"name":"node-2","arch":"x86_64","accel":"tcg","accel_reason":"KVM does not work here (no guest came up within 2 s)","state":"failed","reason":"emergency shell: \u001b[2Jno","phase":"kernel","ready":false,"pid":null,"mac":"52:54:00:00:00:0c","reserved_ip":"10.80.1.12","addresses":[],"ports":[{"bind":"127.0.0.1","host":8092,"guest":80}],"image":"tiny","disks":[],"shares":[],"started_at":null,"notes":[]},{"name":"node-3","arch":null,"accel":null,"accel_reason":"","state":"damaged","reason":"machine.json is empty","phase":"kernel","ready":false,"pid":null,"mac":null,"reserved_ip":null,"addresses":[],"ports":[],"image":null,"disks":[],"shares":[],"started_at":null,"notes":[]}],"kept_disks":[]}}
    "#]].assert_eq(&json_ok(&cluster()).unwrap());
}

#[test]
fn weaknesses_are_told_once_for_all_machines_that_share_them() {
    expect![[r#"
        the network is `fabric`: `namespace` is not built yet
        node-1, node-2 are emulated (tcg): slow, and outside QEMU's security promise"#]]
    .assert_eq(&cluster().notes().join("\n"));
    assert_eq!(
        cluster().why_emulated(),
        ["node-1, node-2 are not run by KVM: KVM does not work here (no guest came up within 2 s)"]
    );
    let mut well = cluster();
    well.network.reason.clear();
    well.machines.clear();
    assert_eq!(well.notes(), Vec::<String>::new());
    well.network.uplink = "QEMU exited".to_owned();
    assert_eq!(
        well.notes(),
        ["the way out to the world is not open: QEMU exited"]
    );
}

#[test]
fn ls_shows_clusters_that_cannot_be_read_too() {
    let listed = [
        ListedView {
            cluster: "demo".to_owned(),
            damage: String::new(),
            spec: Some(PathBuf::from("/home/ann/kiln.yaml")),
            mode: Some(ModeRecord::Fabric),
            subnet: Some("10.80.1.0/24".parse().unwrap()),
            supervisor: SupervisorView { pid: Some(42) },
            machines: BTreeMap::from([("ready", 2), ("crashed", 1)]),
            kept_disks: Vec::new(),
        },
        ListedView {
            cluster: "old".to_owned(),
            damage: "cluster.json is empty".to_owned(),
            spec: None,
            mode: None,
            subnet: None,
            supervisor: SupervisorView { pid: None },
            machines: BTreeMap::new(),
            kept_disks: Vec::new(),
        },
    ];
    expect![[r#"
        NAME  MACHINES            NETWORK  SUBNET        SPEC
        demo  1 crashed, 2 ready  fabric   10.80.1.0/24  /home/ann/kiln.yaml
        old   -                   -        -             damaged: cluster.json is empty
    "#]]
    .assert_eq(&ls_table(Style::PLAIN, &listed));
}

#[test]
fn progress_tells_the_phase_until_there_is_an_end() {
    let mut machine = status("a", StateRecord::Running, "");
    assert_eq!(progress_text(&machine), "kernel");
    machine.phase = "ignition: files".to_owned();
    assert_eq!(progress_text(&machine), "Ignition: files");
    machine.phase = "ignition".to_owned();
    assert_eq!(progress_text(&machine), "Ignition");
    machine.phase.clear();
    assert_eq!(progress_text(&machine), "running");
    machine.state = StateRecord::Ready;
    assert_eq!(progress_text(&machine), "ready");
    machine.state = StateRecord::Paused;
    machine.reason = "host disk full".to_owned();
    assert_eq!(progress_text(&machine), "paused: host disk full");
}
