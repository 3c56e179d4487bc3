//! What `kiln init` writes.

use crate::cluster::ClusterName;

/// A commented `kiln.yaml` that works as it is where there is an internet.
pub fn init_template(cluster: &ClusterName) -> String {
    format!(
        r#"# A cluster of virtual machines for kiln. Then: `kiln plan`, `kiln up`, `kiln ps`.
cluster: {cluster}

# What the machines boot from: downloaded, verified and kept (also flatcar:stable, rhcos:4.18, an address),
image: fedora-coreos:stable
# or, without an internet, a disk image of yours:
# image: ./disk.qcow2
# or a kernel:
# image: {{kernel: ./vmlinuz, initrd: ./initrd.img, cmdline: "console=ttyS0"}}

# network:
#   subnet: 10.80.1.0/24      # chosen and kept when absent

# ssh:
#   key: ~/.ssh/id_ed25519.pub  # besides the pair that kiln makes for this cluster

machines:
  node:
    count: 3                  # node-1, node-2, node-3; or  names: [alpha, beta]
    # cpus: 1
    memory: 2GiB              # what Fedora CoreOS wants
    # disk: 20GiB             # grows the image's disk
    # ignition: node.ign      # a template where it ends in .j2, or with  template: true
    # vars: {{role: worker}}    # for the template
    # ports: [":80"]          # a free port of 127.0.0.1 for each machine
    # restart: on-failure     # no | always
"#
    )
}
