//! Which changes of links are news: a bridge and its ports as they come and go. Pure.

use std::collections::HashMap;
use std::fmt;

use crate::link::Present;
use crate::name::IfName;
use crate::netlink::route::monitor::Word;

/// A link of the network is otherwise than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkNews {
    /// Whose wire it is; absent for the bridge.
    pub machine: Option<String>,
    /// The link, where the kernel has one for it.
    pub link: Option<IfName>,
    /// How it is now.
    pub how: How,
}

/// How a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Frames go through.
    Up,
    /// It was set down.
    Down,
    /// It is a port of the bridge no more.
    Left,
    /// It is not there any more.
    Gone,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            How::Up => "up",
            How::Down => "down",
            How::Left => "not on the bridge any more",
            How::Gone => "gone",
        })
    }
}

/// What was known last.
#[derive(Debug)]
pub struct Watch {
    bridge: IfName,
    /// The taps, and whose they are.
    ports: HashMap<IfName, String>,
    /// By the links' numbers.
    seen: HashMap<u32, (IfName, How)>,
}

impl Watch {
    /// Nothing is known yet of `bridge`.
    pub fn new(bridge: IfName) -> Watch {
        Watch {
            bridge,
            ports: HashMap::new(),
            seen: HashMap::new(),
        }
    }

    /// The taps that there may be, and whose they are.
    pub fn set_ports(&mut self, ports: HashMap<IfName, String>) {
        self.ports = ports;
    }

    /// Takes note of how the links are, and says what is new.
    pub fn on(&mut self, word: &Word) -> Option<LinkNews> {
        match word {
            Word::Link(link) => self.changed(link),
            Word::LinkGone(index) => {
                let (link, _) = self.seen.remove(index)?;
                Some(self.news(link, How::Gone))
            }
            Word::Route(_) | Word::Missed => None,
        }
    }

    /// The links as they are now, after words were missed or before there were any.
    pub fn look(&mut self, links: &[Present]) -> Vec<LinkNews> {
        let gone = |index: &u32| !links.iter().any(|link| link.index == *index);
        let gone: Vec<Word> = self
            .seen
            .keys()
            .copied()
            .filter(gone)
            .map(Word::LinkGone)
            .collect();
        let mut news: Vec<LinkNews> = gone.iter().filter_map(|word| self.on(word)).collect();
        news.extend(links.iter().filter_map(|link| self.changed(link)));
        news
    }

    fn changed(&mut self, link: &Present) -> Option<LinkNews> {
        let is_port = self.ports.contains_key(&link.name);
        if !is_port && link.name != self.bridge {
            return None;
        }
        let how = match (link.up, is_port && link.master.is_none()) {
            (true, false) => How::Up,
            (true, true) => How::Left,
            (false, _) => How::Down,
        };
        let before = self.seen.insert(link.index, (link.name.clone(), how));
        match before {
            Some((_, before)) if before == how => None,
            // One in the making.
            None if how != How::Up => None,
            Some(_) | None => Some(self.news(link.name.clone(), how)),
        }
    }

    fn news(&self, link: IfName, how: How) -> LinkNews {
        LinkNews {
            machine: self.ports.get(&link).cloned(),
            link: Some(link),
            how,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Traffic;

    fn link(index: u32, name: &str, master: Option<u32>, up: bool) -> Present {
        Present {
            index,
            name: name.parse().unwrap(),
            master,
            up,
            alias: None,
            forwards: false,
            traffic: Traffic::default(),
        }
    }

    #[test]
    fn a_wire_is_told_of_when_it_comes_and_when_it_goes() {
        let mut watch = Watch::new("br0".parse().unwrap());
        watch.set_ports(HashMap::from([("t-a".parse().unwrap(), "a".to_owned())]));
        assert_eq!(
            watch
                .look(&[link(1, "br0", None, true), link(2, "eth0", Some(1), true)])
                .len(),
            1
        );
        let mut on = |word: Word| {
            let news = watch.on(&word)?;
            Some((news.machine, news.how))
        };
        let is = |master, up| Word::Link(Box::new(link(3, "t-a", master, up)));
        let a = || Some("a".to_owned());
        assert_eq!(on(is(None, false)), None);
        assert_eq!(on(is(Some(1), false)), None);
        assert_eq!(on(is(Some(1), true)), Some((a(), How::Up)));
        assert_eq!(on(is(Some(1), true)), None);
        assert_eq!(on(is(None, true)), Some((a(), How::Left)));
        assert_eq!(on(is(Some(1), true)), Some((a(), How::Up)));
        assert_eq!(on(Word::LinkGone(3)), Some((a(), How::Gone)));
        assert_eq!(on(Word::LinkGone(3)), None);
        assert_eq!(on(Word::LinkGone(2)), None);
        let bridge = Word::Link(Box::new(link(1, "br0", None, false)));
        assert_eq!(on(bridge), Some((None, How::Down)));
    }
}
