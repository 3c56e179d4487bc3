use std::thread;

use tempfile::{TempDir, tempdir};

use super::*;

struct Home {
    folder: TempDir,
    store: Store,
}

impl Home {
    fn new() -> Home {
        let folder = tempdir().unwrap();
        let memo = Memo::new(folder.path().join("facts"));
        let store = Store::new(&folder.path().join("cache"), memo);
        Home { folder, store }
    }

    /// A file whose times are old enough to be trusted.
    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        let stamp = FileStamp::of(&fs::metadata(&path).unwrap());
        while !stamp.is_settled(SystemTime::now()) {
            std::hint::spin_loop();
        }
        path
    }

    fn blobs(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.folder.path().join("cache/blobs"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        names
    }
}

const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

#[test]
fn a_file_is_copied_once_and_then_only_looked_at() {
    let home = Home::new();
    let kernel = home.file("kernel", "abc");
    let intern = || {
        let mut heard = 0;
        let interned = home
            .store
            .intern(&kernel, &mut |done| heard = done)
            .unwrap();
        (interned.path, interned.sha256, interned.length, heard)
    };
    let (path, sha256, length, heard) = intern();
    assert_eq!((sha256.as_str(), length, heard), (ABC, 3, 3));
    assert_eq!(fs::read(&path).unwrap(), b"abc");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o444);
    let told = |heard| (path.clone(), sha256.clone(), length, heard);
    assert_eq!(intern(), told(0));
    // A copy that was removed or cut short is made again.
    fs::remove_file(&path).unwrap();
    assert_eq!(intern(), told(3));
    fs::remove_file(&path).unwrap();
    fs::write(&path, "ab").unwrap();
    assert_eq!(intern(), told(3));
    assert_eq!(fs::read(&path).unwrap(), b"abc");
    assert_eq!(home.blobs(), [format!("sha256-{ABC}")]);
}

#[test]
fn a_rebuilt_kernel_is_another_and_the_old_copy_stays() {
    let home = Home::new();
    let kernel = home.file("kernel", "abc");
    let old = home.store.intern(&kernel, &mut |_| {}).unwrap();
    home.file("kernel", "abd");
    let new = home.store.intern(&kernel, &mut |_| {}).unwrap();
    assert_ne!(old.sha256, new.sha256);
    assert_eq!(fs::read(&old.path).unwrap(), b"abc");
    assert_eq!(fs::read(&new.path).unwrap(), b"abd");
}

#[test]
fn twenty_at_once_make_one_copy() {
    let home = Home::new();
    let kernel = home.file("kernel", "abc");
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let interned = home.store.intern(&kernel, &mut |_| {}).unwrap();
                assert_eq!(fs::read(&interned.path).unwrap(), b"abc");
            });
        }
    });
    assert_eq!(home.blobs(), [format!("sha256-{ABC}")]);
}

#[test]
fn what_nobody_needs_goes_and_what_somebody_holds_stays() {
    let home = Home::new();
    let kernel = home.file("kernel", "abc");
    let initrd = home.file("initrd", "abd");
    let held = home.store.intern(&kernel, &mut |_| {}).unwrap();
    let needed = home.store.intern(&initrd, &mut |_| {}).unwrap().path;
    fs::write(home.folder.path().join("cache/blobs/mine"), "x").unwrap();
    assert_eq!(home.store.prune(|path| path == needed).unwrap(), []);
    let path = held.path;
    drop(held.held);
    let gone = home.store.prune(|path| path == needed).unwrap();
    assert_eq!(gone.len(), 1);
    assert!(!path.exists() && needed.exists());
    home.store.prune(|_| false).unwrap();
    assert_eq!(home.blobs(), ["mine"]);
}

#[test]
fn a_failed_copy_leaves_nothing() {
    let home = Home::new();
    let folder = home.folder.path().join("cache/blobs");
    folder::make_private(&folder).unwrap();
    fs::create_dir(folder.join(format!("sha256-{ABC}"))).unwrap();
    let kernel = home.file("kernel", "abc");
    let error = home.store.intern(&kernel, &mut |_| {}).unwrap_err();
    assert!(matches!(error, StoreError::Copy { .. }), "{error}");
    assert_eq!(home.blobs(), [format!("sha256-{ABC}")]);
}

#[test]
fn only_files_with_something_in_them_are_kept() {
    let home = Home::new();
    let empty = home.file("empty", "");
    let folder = home.folder.path();
    for path in [
        empty.as_path(),
        folder,
        Path::new("/dev/zero"),
        Path::new("/nowhere"),
    ] {
        let error = home.store.intern(path, &mut |_| {}).unwrap_err();
        assert!(matches!(error, StoreError::Source { .. }), "{path:?}");
    }
}
