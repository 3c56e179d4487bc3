//! The command line, as far as the fake cares.

use std::collections::{BTreeMap, BTreeSet};

/// What was found on it.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// The machine's name without the cluster's.
    pub(crate) machine: String,
    /// `-S`.
    pub(crate) paused: bool,
    /// `-action shutdown=pause`.
    pub(crate) stays: bool,
    /// `-action panic=pause`.
    pub(crate) panic_stays: bool,
    /// Descriptors of the QMP listeners.
    pub(crate) monitors: Vec<i32>,
    /// Listeners of everything else that talks: by port name, `console` and `nic`.
    pub(crate) ports: Vec<(String, i32)>,
    pub(crate) console_log: Option<i32>,
}

impl Options {
    pub(crate) fn parse(args: &[String]) -> Result<Options, String> {
        let mut options = Options::default();
        let mut sockets: BTreeMap<String, i32> = BTreeMap::new();
        let mut sets: BTreeMap<String, i32> = BTreeMap::new();
        let mut logs: BTreeMap<String, String> = BTreeMap::new();
        let mut monitors: BTreeSet<String> = BTreeSet::new();
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        let mut rest = args.iter();
        while let Some(option) = rest.next() {
            if option == "-S" {
                options.paused = true;
            }
            let has_value = [
                "-name", "-chardev", "-mon", "-serial", "-device", "-add-fd", "-netdev", "-action",
                "-tpmdev",
            ];
            if !has_value.contains(&option.as_str()) {
                continue;
            }
            let value = rest
                .next()
                .ok_or(format!("{option}: requires an argument"))?;
            let keys = keys(value);
            let get = |key: &str| keys.get(key).cloned();
            let number = |key: &str| -> Result<Option<i32>, String> {
                let number = keys.get(key).map(|text| text.parse());
                number
                    .transpose()
                    .map_err(|_| format!("{option} {value}: {key} is no number"))
            };
            match option.as_str() {
                "-name" => {
                    let name = get("guest").unwrap_or_else(|| value.clone());
                    options.machine = name.rsplit('/').next().unwrap_or(&name).to_owned();
                }
                "-chardev" => {
                    let id = get("id").ok_or(format!("{option} {value}: no id"))?;
                    if let Some(fd) = number("fd")? {
                        sockets.insert(id.clone(), fd);
                    }
                    if let Some(log) = get("logfile") {
                        logs.insert(id, log);
                    }
                }
                "-add-fd" => {
                    if let (Some(fd), Some(set)) = (number("fd")?, get("set")) {
                        sets.insert(format!("/dev/fdset/{set}"), fd);
                    }
                }
                // Held until the end, and spoken to by nobody.
                "-tpmdev" => {
                    sockets.remove(&get("chardev").unwrap_or_default());
                }
                "-mon" => monitors.extend(get("chardev")),
                "-serial" => {
                    let chardev = value.strip_prefix("chardev:").unwrap_or(value);
                    names.insert(chardev.to_owned(), "console".to_owned());
                }
                "-device" => {
                    if let (Some(chardev), Some(name)) = (get("chardev"), get("name")) {
                        names.insert(chardev, name);
                    } else if let Some(chardev) = get("chardev") {
                        names.insert(chardev, "console".to_owned());
                    }
                }
                "-netdev" => {
                    if let Some(fd) = number("addr.str")? {
                        options.ports.push(("nic".to_owned(), fd));
                    }
                }
                _ => {
                    options.stays |= get("shutdown").as_deref() == Some("pause");
                    options.panic_stays |= get("panic").as_deref() == Some("pause");
                }
            }
        }
        for (id, fd) in sockets {
            if monitors.contains(&id) {
                options.monitors.push(fd);
                continue;
            }
            let name = names
                .get(&id)
                .ok_or(format!("chardev {id} is used by nobody"))?;
            if name == "console" {
                options.console_log = logs.get(&id).and_then(|path| sets.get(path)).copied();
            }
            options.ports.push((name.clone(), fd));
        }
        Ok(options)
    }
}

/// `head,key=value,…` with doubled commas.
fn keys(value: &str) -> BTreeMap<String, String> {
    value
        .replace(",,", "\0")
        .split(',')
        .filter_map(|part| part.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.replace('\0', ",")))
        .collect()
}
