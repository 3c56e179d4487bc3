//! The output: a program and its arguments, each with the reason why it is there.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::device::AddFd;
use crate::machine::ChildFd;
use crate::{Arch, Unsupported};

/// A QEMU command line, in the order in which it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuCommand {
    /// The program's bare name; the host knows in which folder it lies.
    pub program: OsString,
    args: Vec<Arg>,
    descriptors: BTreeSet<ChildFd>,
}

/// One option, its value, and why it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arg {
    /// With its dash, such as `-device`.
    pub option: &'static str,
    /// Absent where the option has none, such as `-nodefaults`.
    pub value: Option<OsString>,
    pub reason: Reason,
}

/// Why an argument is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// This key of the spec, or its default.
    Spec(&'static str),
    /// What machines of this architecture are.
    Arch(Arch, &'static str),
    /// What was found on the host.
    Host(&'static str),
    /// What kiln needs in order to keep its promises.
    Kiln(&'static str),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Spec(key) => write!(f, "spec: `{key}`"),
            Reason::Arch(arch, why) => write!(f, "{arch}: {why}"),
            Reason::Host(why) => write!(f, "host: {why}"),
            Reason::Kiln(why) => write!(f, "kiln: {why}"),
        }
    }
}

impl QemuCommand {
    pub(crate) fn new(program: &str) -> QemuCommand {
        QemuCommand {
            program: program.into(),
            args: Vec::new(),
            descriptors: BTreeSet::new(),
        }
    }

    /// The options in order, each with its reason.
    pub fn args(&self) -> &[Arg] {
        &self.args
    }

    /// The arguments that follow the program, one by one, as `exec` wants them.
    pub fn argv(&self) -> impl Iterator<Item = OsString> + '_ {
        self.args
            .iter()
            .flat_map(|arg| [Some(OsString::from(arg.option)), arg.value.clone()])
            .flatten()
    }

    /// Every descriptor that the arguments speak of, ascending. QEMU has to inherit these, and
    /// none other but the standard three.
    pub fn descriptors(&self) -> impl Iterator<Item = ChildFd> + '_ {
        self.descriptors.iter().copied()
    }

    /// The command as a POSIX shell reads it, one option a line.
    pub fn shell(&self) -> OsString {
        let mut text = quoted(&self.program);
        for arg in &self.args {
            text.extend_from_slice(b" \\\n  ");
            text.extend_from_slice(arg.option.as_bytes());
            if let Some(value) = &arg.value {
                text.push(b' ');
                text.extend(quoted(value));
            }
        }
        OsString::from_vec(text)
    }

    pub(crate) fn flag(&mut self, option: &'static str, reason: Reason) {
        self.args.push(Arg {
            option,
            value: None,
            reason,
        });
    }

    /// Appends an option and its value.
    ///
    /// # Errors
    /// [`Unsupported::ControlByte`]: a NUL cannot be passed to a program, and a newline has no
    /// place in any of these values but to forge a second line somewhere.
    pub(crate) fn push(
        &mut self,
        option: &'static str,
        value: impl Into<OsString>,
        reason: Reason,
    ) -> Result<(), Unsupported> {
        let value = value.into();
        if let Some(&byte) = value.as_bytes().iter().find(|byte| byte.is_ascii_control()) {
            return Err(Unsupported::ControlByte { option, byte });
        }
        self.args.push(Arg {
            option,
            value: Some(value),
            reason,
        });
        Ok(())
    }

    /// Notes that an argument speaks of this descriptor.
    ///
    /// # Errors
    /// [`Unsupported::DescriptorTwice`]: QEMU closes what an option took, so that the second one
    /// would find nothing, or another's file.
    pub(crate) fn inherit(&mut self, fd: ChildFd) -> Result<(), Unsupported> {
        if self.descriptors.insert(fd) {
            Ok(())
        } else {
            Err(Unsupported::DescriptorTwice { fd })
        }
    }

    /// Makes a descriptor openable, and returns the name for it.
    pub(crate) fn add_fd(&mut self, fd: ChildFd) -> Result<String, Unsupported> {
        let set = AddFd { fd };
        self.inherit(fd)?;
        self.push(
            "-add-fd",
            set.opt().into_value(),
            Reason::Kiln("opened for QEMU, which has no right to the folder"),
        )?;
        Ok(set.path())
    }
}

/// One option a line, unquoted: for people and for golden files.
impl fmt::Display for QemuCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.program.display())?;
        for arg in &self.args {
            write!(f, "\n  {}", arg.option)?;
            if let Some(value) = &arg.value {
                write!(f, " {}", value.display())?;
            }
        }
        Ok(())
    }
}

/// A word as a POSIX shell takes it for itself.
fn quoted(word: &OsStr) -> Vec<u8> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"%+,-./:=@_".contains(byte);
    if !word.is_empty() && word.as_bytes().iter().all(plain) {
        return word.as_bytes().to_vec();
    }
    let mut text = vec![b'\''];
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => text.extend_from_slice(br"'\''"),
            _ => text.push(byte),
        }
    }
    text.push(b'\'');
    text
}
