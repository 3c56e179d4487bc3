//! What was rendered is taken apart again, by parsers of the test's own, and has to be what went
//! in: no comma, quote, space or `%s` in a value changes the machine.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use kiln_arch::command::QemuCommand;
use kiln_arch::machine::{
    Console, ConsoleBackend, Ignition, Image, Kernel, NicBackend, Socket, Source,
};
use kiln_arch::{Arch, render};
use proptest::prelude::{Strategy, any, prop_assert_eq, proptest};
use proptest::sample::select;
use serde_json::Value;

use crate::fixture;

/// Reads `head,key=value,…` as QEMU does: a doubled comma is one of the value's own. A word
/// without a `=` is a head and has no key.
fn parse(value: &OsStr) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut words = vec![Vec::new()];
    let mut bytes = value.as_bytes().iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte == b',' && bytes.next_if_eq(&b',').is_none() {
            words.push(Vec::new());
        } else {
            words.last_mut().unwrap().push(byte);
        }
    }
    words
        .into_iter()
        .map(|word| match word.iter().position(|byte| *byte == b'=') {
            Some(at) => (word[..at].to_vec(), word[at + 1..].to_vec()),
            None => (Vec::new(), word),
        })
        .collect()
}

/// Reads words as a POSIX shell does, as far as single quotes and backslashes go.
fn words(line: &OsStr) -> Vec<OsString> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = line.as_bytes().iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b' ' => words.extend(word.take()),
            b'\'' => {
                let inner = bytes.by_ref().take_while(|byte| *byte != b'\'');
                word.get_or_insert_default().extend(inner);
            }
            b'\\' => match bytes.next().unwrap() {
                b'\n' => {}
                escaped => word.get_or_insert_default().push(escaped),
            },
            _ => {
                assert!(
                    !b"\n\t\"$`&|;<>()*?[]#~{}!".contains(&byte),
                    "the shell would see {:?}",
                    char::from(byte)
                );
                word.get_or_insert_default().push(byte);
            }
        }
    }
    words.extend(word);
    words.into_iter().map(OsString::from_vec).collect()
}

/// The value of `key` in the only `option` that begins with `head`.
fn value_of(command: &QemuCommand, option: &str, head: &str, key: &str) -> Vec<u8> {
    let found: Vec<_> = command
        .args()
        .iter()
        .filter(|arg| arg.option == option)
        .map(|arg| parse(arg.value.as_ref().unwrap()))
        .filter(|pairs| pairs[0].1 == head.as_bytes())
        .collect();
    assert_eq!(found.len(), 1, "{option} {head}");
    let values: Vec<_> = found[0]
        .iter()
        .filter(|(name, _)| name == key.as_bytes())
        .collect();
    assert_eq!(values.len(), 1, "{option} {head},{key}");
    values[0].1.clone()
}

fn plain<'a>(command: &'a QemuCommand, option: &str) -> &'a OsStr {
    let arg = command.args().iter().find(|arg| arg.option == option);
    arg.unwrap().value.as_ref().unwrap()
}

/// Text with much of what trips parsers, without control bytes.
fn text() -> impl Strategy<Value = String> {
    let piece = select(vec![
        ",",
        ",,",
        "=",
        " ",
        "%s",
        "'",
        "\"",
        "\\",
        "{",
        "}",
        ":",
        "..",
        "-",
        "\u{e9}",
        "\u{1f525}",
        "$(x)",
        "`x`",
        "#",
        "file=",
        "on",
        "help",
        "?",
        "a",
    ])
    .prop_map(str::to_owned);
    let odd = proptest::collection::vec(piece, 1..12).prop_map(|pieces| pieces.concat());
    proptest::prop_oneof![odd, "\\PC{1,40}"]
        .prop_map(|text| text.chars().filter(|c| !c.is_control()).collect())
}

/// A path of any bytes but control bytes.
fn path() -> impl Strategy<Value = OsString> {
    proptest::collection::vec(any::<u8>(), 1..60).prop_map(|mut bytes| {
        bytes.retain(|byte| !byte.is_ascii_control());
        bytes.insert(0, b'/');
        OsString::from_vec(bytes)
    })
}

fn arch() -> impl Strategy<Value = Arch> {
    select(Arch::ALL.to_vec())
}

proptest! {
    #[test]
    fn values_come_out_as_they_went_in(arch in arch(), path in path(), cmdline in text()) {
        let mut machine = fixture::direct(arch);
        let source = Source::Path(path.clone().into());
        machine.cluster = cmdline.clone();
        machine.kernel = Some(Kernel {
            image: source.clone(),
            initrd: Some(source.clone()),
            cmdline: cmdline.clone(),
        });
        machine.console = Console {
            backend: ConsoleBackend::Socket(Socket::Path(path.clone().into())),
            log: Some(source.clone()),
        };
        machine.nics[0].backend = NicBackend::Stream(Socket::Path(path.clone().into()));
        if matches!(arch, Arch::X86_64 | Arch::I386 | Arch::Aarch64) {
            machine.ignition = Ignition::Config(source);
        }
        machine.monitors.clear();
        machine.ports.clear();
        let command = render(&machine).unwrap();

        let bytes = path.as_bytes();
        prop_assert_eq!(plain(&command, "-kernel").as_bytes(), bytes);
        prop_assert_eq!(plain(&command, "-initrd").as_bytes(), bytes);
        if !cmdline.is_empty() {
            prop_assert_eq!(plain(&command, "-append"), OsStr::new(&cmdline));
        }
        let name = parse(plain(&command, "-name"));
        prop_assert_eq!(&name[0], &(b"guest".to_vec(), format!("{cmdline}/node-1").into_bytes()));
        prop_assert_eq!(value_of(&command, "-chardev", "socket", "path"), bytes);
        prop_assert_eq!(value_of(&command, "-chardev", "socket", "logfile"), bytes);
        prop_assert_eq!(value_of(&command, "-netdev", "stream", "addr.path"), bytes);
        if matches!(arch, Arch::X86_64 | Arch::I386 | Arch::Aarch64) {
            let item = parse(plain(&command, "-fw_cfg"));
            prop_assert_eq!(&item[1], &(b"file".to_vec(), bytes.to_vec()));
        }
    }

    #[test]
    fn images_come_out_as_they_went_in(arch in arch(), root in text(), base in text()) {
        let mut machine = fixture::direct(arch);
        machine.drives[0].image = Image::Qcow2 {
            source: Source::Path(root.clone().into()),
            backing: Some(Box::new(Image::Qcow2 {
                source: Source::Path(base.clone().into()),
                backing: None,
            })),
        };
        let command = render(&machine).unwrap();
        let node: Value = serde_json::from_slice(plain(&command, "-blockdev").as_bytes()).unwrap();
        prop_assert_eq!(&node["file"]["filename"], &Value::from(root));
        prop_assert_eq!(&node["backing"]["file"]["filename"], &Value::from(base));
        prop_assert_eq!(node["backing"].get("backing"), Some(&Value::Null));
    }

    #[test]
    fn serials_come_out_as_they_went_in(arch in arch(), serial in "\\PC{0,6}") {
        let mut machine = fixture::direct(arch);
        machine.ignition = Ignition::None;
        machine.drives[0].serial = Some(serial.clone());
        let Ok(command) = render(&machine) else {
            // `\PC` leaves characters of four bytes and U+0085, which is no ASCII control.
            proptest::prop_assert!(serial.len() > 20);
            return Ok(());
        };
        let disk = command.args().iter().filter(|arg| arg.option == "-device").find_map(|arg| {
            let pairs = parse(arg.value.as_ref().unwrap());
            pairs.contains(&(b"drive".to_vec(), b"disk0".to_vec())).then_some(pairs)
        });
        let pair = (b"serial".to_vec(), serial.into_bytes());
        proptest::prop_assert!(disk.unwrap().contains(&pair));
    }

    #[test]
    fn the_shell_reads_the_same_arguments(arch in arch(), path in path(), cmdline in text()) {
        let mut machine = fixture::shell(arch);
        machine.kernel = Some(Kernel {
            image: Source::Path(path.into()),
            initrd: None,
            cmdline,
        });
        let command = render(&machine).unwrap();
        let mut line = vec![command.program.clone()];
        line.extend(command.argv());
        prop_assert_eq!(words(&command.shell()), line);
    }
}

#[test]
fn the_descriptors_are_those_that_the_arguments_name() {
    for way in fixture::ways() {
        let command = render(&way.machine()).unwrap();
        let told: BTreeSet<String> = command.descriptors().map(|fd| fd.to_string()).collect();
        let named: BTreeSet<String> = command
            .args()
            .iter()
            .filter_map(|arg| arg.value.as_ref())
            .flat_map(|value| numbers(value.to_str().unwrap()))
            .collect();
        assert_eq!(told, named, "{}", way.name());
    }
}

/// The descriptors' numbers in one value, wherever QEMU takes one.
fn numbers(value: &str) -> Vec<String> {
    let marks = ["fd=", "addr.str=", "/dev/fdset/", "/proc/self/fd/"];
    marks
        .iter()
        .flat_map(|mark| value.split(mark).skip(1))
        .map(|rest| rest.chars().take_while(char::is_ascii_digit).collect())
        .collect()
}
