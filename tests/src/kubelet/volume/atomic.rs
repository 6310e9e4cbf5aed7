//! Directories whose files are replaced all at once, as Kubernetes does it: the files lie in a directory of their own,
//! `..data` is a link to it, and each name is a link through `..data`. A reader sees all of the old or all of the new.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::{Component, Path},
};

use anyhow::{Context as _, bail};
use k8s_openapi::jiff::Timestamp;

use super::Files;

const CURRENT: &str = "..data";
const NEXT: &str = "..data_tmp";

/// Makes a directory for everyone, or for a group.
///
/// # Errors
/// Those of the file system.
pub fn empty(directory: &Path, group: Option<i64>) -> anyhow::Result<()> {
    if directory.exists() {
        return Ok(());
    }
    fs::create_dir_all(directory)?;
    if let Some(group) = group.map(u32::try_from).transpose()? {
        chown(directory, None, Some(group))?;
    }
    // A file that is made in it belongs to the group.
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    fs::set_permissions(directory, fs::Permissions::from_mode(mode)).context("cannot set the mode")
}

/// Makes a directory hold these files and no others. Nothing is touched when it does already.
///
/// # Errors
/// Those of the file system, and when a path leads out of the directory.
pub fn write(directory: &Path, files: &Files, group: Option<i64>) -> anyhow::Result<()> {
    for path in files.keys() {
        let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside || path.is_empty() || path.starts_with("..") {
            bail!("path {path:?} must be relative, without `..`");
        }
    }
    fs::create_dir_all(directory)?;
    if holds(directory, files) {
        return Ok(());
    }
    let group = group.map(u32::try_from).transpose()?;
    let version = format!("..{}", Timestamp::now().as_nanosecond());
    let target = directory.join(&version);
    fs::create_dir(&target)?;
    for (path, (contents, mode)) in files {
        let path = target.join(path);
        fs::create_dir_all(path.parent().unwrap_or(&target))?;
        fs::write(&path, contents)?;
        let readable = if group.is_some() { 0o040 } else { 0 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode | readable))?;
        if group.is_some() {
            chown(&path, None, group)?;
        }
    }
    let before = fs::read_link(directory.join(CURRENT)).ok();
    let _ = fs::remove_file(directory.join(NEXT));
    symlink(&version, directory.join(NEXT))?;
    fs::rename(directory.join(NEXT), directory.join(CURRENT))?;
    link_names(directory, files)?;
    if let Some(before) = before {
        fs::remove_dir_all(directory.join(before))?;
    }
    Ok(())
}

/// Makes each first name a link through `..data`, and removes those of files that are gone.
fn link_names(directory: &Path, files: &Files) -> anyhow::Result<()> {
    let first = |path: &String| Path::new(path).components().next().map(|part| part.as_os_str().to_owned());
    let names: BTreeSet<OsString> = files.keys().filter_map(first).collect();
    for name in &names {
        let link = directory.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(CURRENT).join(name), &link)?;
        }
    }
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        if !name.to_string_lossy().starts_with("..") && !names.contains(&name) {
            fs::remove_file(directory.join(name))?;
        }
    }
    Ok(())
}

fn holds(directory: &Path, files: &Files) -> bool {
    let current = directory.join(CURRENT);
    let same = |(path, (contents, _)): (&String, &(Vec<u8>, u32))| {
        fs::read(current.join(path)).is_ok_and(|old| old == *contents)
    };
    current.exists() && files.iter().all(same) && count(&current) == files.len()
}

fn count(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { count(&entry.path()) } else { 1 }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(all: &[(&str, &str)]) -> Files {
        all.iter().map(|(path, contents)| ((*path).to_owned(), (contents.as_bytes().to_vec(), 0o644))).collect()
    }

    fn names(directory: &Path) -> Vec<String> {
        let all = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = all.filter(|name| !name.starts_with("..")).collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_replaced_together() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        write(directory, &files(&[("a", "1"), ("deep/b", "2")]), None).unwrap();
        assert_eq!(names(directory), ["a", "deep"]);
        assert_eq!(fs::read_to_string(directory.join("deep/b")).unwrap(), "2");
        let before = fs::read_link(directory.join(CURRENT)).unwrap();

        write(directory, &files(&[("a", "1"), ("deep/b", "2")]), None).unwrap();
        assert_eq!(fs::read_link(directory.join(CURRENT)).unwrap(), before, "nothing changed, so nothing is written");

        write(directory, &files(&[("a", "3"), ("c", "4")]), None).unwrap();
        assert_eq!(names(directory), ["a", "c"]);
        assert_eq!(fs::read_to_string(directory.join("a")).unwrap(), "3");
        assert!(!directory.join(before).exists(), "the old files are gone");

        write(directory, &Files::new(), None).unwrap();
        assert!(names(directory).is_empty());
    }

    #[test]
    fn no_file_is_written_outside() {
        let directory = tempfile::tempdir().unwrap();
        for path in ["/etc/passwd", "../x", "a/../../x", "", "..data"] {
            assert!(write(directory.path(), &files(&[(path, "")]), None).is_err(), "{path}");
        }
    }
}
