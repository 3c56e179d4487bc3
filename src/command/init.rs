//! `kiln init` and `kiln man`: files for the user, made without looking at the host.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use crate::cli::args::{InitArgs, ManArgs};
use crate::cli::documents;
use crate::cluster::ClusterName;
use crate::error::{Error, Exit};
use crate::report::output::Report;
use crate::spec;

pub(super) fn run(report: &Report, args: &InitArgs) -> Result<(), Error> {
    let path = args
        .path
        .clone()
        .unwrap_or_else(|| PathBuf::from(spec::SPEC_FILE_NAME));
    let text = spec::init_template(&cluster_name(&path));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    match written {
        Ok(()) => {
            let value = serde_json::json!({ "spec": path });
            report.result(&value, |_| {
                format!("wrote {}; edit it, then `kiln up`\n", path.display())
            })
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(Error::new(
            Exit::Unsafe,
            format!("`{}` is there already", path.display()),
        )
        .hint("name another file: `kiln init FILE`")),
        Err(error) => Err(Error::because(
            Exit::Failed,
            format!("cannot write `{}`", path.display()),
            &error,
        )),
    }
}

/// The folder's name where it is one for a cluster.
fn cluster_name(path: &std::path::Path) -> ClusterName {
    let folder = std::path::absolute(path)
        .ok()
        .and_then(|path| Some(path.parent()?.file_name()?.to_str()?.to_lowercase()));
    folder
        .and_then(|name| name.parse().ok())
        .or_else(|| "demo".parse().ok())
        .unwrap_or_else(|| unreachable!("`demo` is a name"))
}

pub(super) fn man(report: &Report, args: &ManArgs) -> Result<(), Error> {
    let pages = documents::pages()
        .map_err(|error| Error::because(Exit::Failed, "cannot make the pages", &error))?;
    let Some(folder) = &args.dir else {
        let first = pages.first().map(|page| page.text.as_slice());
        return report.write(first.unwrap_or_default());
    };
    for page in pages {
        let path = folder.join(&page.file);
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&path, &page.text))
            .map_err(|error| {
                Error::because(
                    Exit::Failed,
                    format!("cannot write `{}`", path.display()),
                    &error,
                )
            })?;
    }
    Ok(())
}
