//! `lbctl save -o FILE`, whatever FILE is.
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::World;

const SAVED: &str = "mode = \"ipvs\"\n";

fn save(world: &World, file: &Path) -> String {
    world.prints(&["save", "-o", file.to_str().unwrap()])
}

#[test]
fn a_named_pipe_is_written_to_and_stays_a_pipe() {
    let world = World::new();
    let pipe = world.directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // Held open for reading and writing, so that neither side waits for the other (fifo(7)).
    let mut reader = OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    assert_eq!(save(&world, &pipe), "");
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    let mut text = [0; SAVED.len()];
    reader.read_exact(&mut text).unwrap();
    assert_eq!(text, SAVED.as_bytes());
}

/// What `/dev/stdout` is, too; one of the test's own, for a test that fails must not replace the machine's.
fn stdout(world: &World) -> PathBuf {
    let link = world.directory.path().join("stdout");
    symlink("/proc/self/fd/1", &link).unwrap();
    link
}

#[test]
fn standard_output_is_written_to_under_each_of_its_names() {
    let world = World::new();
    for name in [stdout(&world).as_path(), Path::new("/proc/self/fd/1")] {
        assert_eq!(save(&world, name), SAVED, "{}", name.display());
    }
}

#[test]
fn standard_output_that_is_a_file_keeps_what_was_written_before() {
    let world = World::new();
    let path = world.directory.path().join("all");
    let mut file = File::create(&path).unwrap();
    file.write_all(b"# saved\n").unwrap();
    let mut command = world.command(&["save", "-o", stdout(&world).to_str().unwrap()]);
    assert!(command.stdout(file).status().unwrap().success());
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("# saved\n{SAVED}"));
}

#[test]
fn a_file_that_is_replaced_keeps_its_mode_and_its_owner() {
    let world = World::new();
    let path = world.directory.path().join("saved.toml");
    fs::write(&path, "old").unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    // Only root may give a file away.
    let given = chown(&path, Some(1234), Some(1235)).is_ok();
    let before = fs::metadata(&path).unwrap();
    save(&world, &path);
    let after = fs::metadata(&path).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), SAVED);
    assert_ne!(after.ino(), before.ino(), "replaced, never half written");
    assert_eq!(after.mode() & 0o7777, 0o640);
    assert_eq!((after.uid(), after.gid()), (before.uid(), before.gid()));
    assert!(!given || after.uid() == 1234);
}

#[test]
fn a_link_stays_a_link_and_the_file_that_it_names_is_written() {
    let world = World::new();
    let path = |name| world.directory.path().join(name);
    fs::write(path("there"), "old").unwrap();
    for target in ["there", "not there yet"] {
        let link = path("link");
        symlink(target, &link).unwrap();
        save(&world, &link);
        assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
        assert_eq!(fs::read_to_string(path(target)).unwrap(), SAVED);
        fs::remove_file(&link).unwrap();
    }
}

#[test]
fn a_link_to_itself_is_an_error_and_stays() {
    let world = World::new();
    let link = world.directory.path().join("link");
    symlink("link", &link).unwrap();
    let output = world.command(&["save", "-o", link.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("link"));
}
