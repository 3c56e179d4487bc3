//! The host's routes and resolvers, from the kernel's and libc's text files; pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{Ipv4Net, Ipv6Net};

const DNS_PORT: u16 = 53;

/// The destinations in the text of `/proc/net/route`, default routes left out.
///
/// Lines that cannot be read are passed over: a route that is not seen here only makes a clash
/// possible, which the network's set-up still finds.
pub(super) fn parse_routes(text: &str) -> Vec<Ipv4Net> {
    let mut routes: Vec<Ipv4Net> = text.lines().skip(1).filter_map(parse_route).collect();
    routes.sort_unstable();
    routes.dedup();
    routes
}

/// The same in the text of `/proc/net/ipv6_route`: the first two words of a line are the destination's 32 digits and its
/// length. Whole networks are meant: addresses of the host's own and what all hosts have are left out.
pub(super) fn parse_routes6(text: &str) -> Vec<Ipv6Net> {
    let route = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let bits = u128::from_str_radix(fields.next()?, 16).ok()?;
        let length = u8::from_str_radix(fields.next()?, 16).ok()?;
        let net = Ipv6Net::new(Ipv6Addr::from_bits(bits), length).ok()?;
        let is_link = net.addr().is_unicast_link_local() || net.addr().is_multicast();
        ((1..128).contains(&length) && !is_link).then_some(net)
    };
    let mut routes: Vec<Ipv6Net> = text.lines().filter_map(route).collect();
    routes.sort_unstable();
    routes.dedup();
    routes
}

fn parse_route(line: &str) -> Option<Ipv4Net> {
    let mut fields = line.split_ascii_whitespace();
    let destination = fields.nth(1)?;
    let mask = fields.nth(5)?;
    let net = Ipv4Net::with_netmask(parse_address(destination)?, parse_address(mask)?).ok()?;
    (net.prefix_len() > 0).then_some(net)
}

/// The kernel prints the address's four bytes as one number of its own byte order.
fn parse_address(text: &str) -> Option<Ipv4Addr> {
    let number = u32::from_str_radix(text, 16).ok()?;
    Some(Ipv4Addr::from(number.to_ne_bytes()))
}

/// The name servers in the text of `/etc/resolv.conf`, in their order.
///
/// Link-local ones that are bound to an interface by name are left out.
pub(super) fn parse_resolvers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let address = (words.next()? == "nameserver").then(|| words.next())??;
            Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, DNS_PORT))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn networks_of_ipv6_are_read_and_the_rest_is_left_out() {
        let line = |to: &str, length: &str| {
            format!(
                "{to} {length} {zero} 00 {zero} 00000100 00000001 00000000 00000001 eth0\n",
                zero = "0".repeat(32)
            )
        };
        let text = [
            line("fd000001000200000000000000000000", "40"),
            line("fe800000000000000000000000000000", "40"),
            line("ff000000000000000000000000000000", "08"),
            line("00000000000000000000000000000000", "00"),
            line("fd000001000200000000000000000001", "80"),
            "torn\n".to_owned(),
        ];
        let want: Ipv6Net = "fd00:1:2::/64".parse().unwrap();
        assert_eq!(parse_routes6(&text.concat()), [want]);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn routes_are_read_and_the_default_route_is_left_out() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\n\
            eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            torn\t0000\n";
        let routes = parse_routes(text);
        let shown: Vec<String> = routes.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["172.17.0.0/16", "192.0.2.0/24"]);
    }

    #[test]
    fn resolvers_are_read_in_order() {
        let text = "# a comment\nsearch example.com\nnameserver 127.0.0.53\n\
            nameserver\t2001:db8::1 \nnameserver fe80::1%eth0\nnameserver\nnameservers 1.2.3.4\n";
        let shown: Vec<String> = parse_resolvers(text)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(shown, ["127.0.0.53:53", "[2001:db8::1]:53"]);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_readers_panic(text in "(?s).{0,200}") {
            parse_routes(&text);
            parse_resolvers(&text);
        }
    }
}
