//! A real folder with real inotify. Nothing here waits for a time to pass: each change is awaited as an update.

use std::fs::{self, File};
use std::future::Future;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::super::Source;
use super::{shop, told};
use crate::table::Update;

/// A folder of its own for each test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sluice-watch-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.at(name), text).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

/// The next changes; a change that never comes fails the test.
async fn next(source: &mut Source) -> Vec<Update> {
    tokio::time::timeout(Duration::from_secs(60), source.next()).await.expect("an update")
}

/// Takes changes until this one is among them.
async fn until(source: &mut Source, line: &str) -> Vec<String> {
    let mut all = Vec::new();
    while !all.iter().any(|it| it == line) {
        all.extend(told(&next(source).await));
    }
    all
}

/// Takes changes until the problems are as wanted.
async fn until_problems(source: &mut Source, wanted: usize) -> Vec<String> {
    let mut all = Vec::new();
    while source.problems().len() != wanted {
        all.extend(told(&next(source).await));
    }
    all
}

fn open(path: &Path) -> Source {
    Source::dir(path).unwrap()
}

const CART: &str = "+EndpointSlice shop/cart-1";
const TILL: &str = "+EndpointSlice shop/till-1";

#[test]
fn the_first_answer_is_all_there_is() {
    run(async {
        let folder = Folder::new();
        folder.write("a.yaml", &shop("cart", "10.1.0.1"));
        folder.write("b.yml", &shop("till", "10.1.0.2"));
        folder.write("c.json", r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}"#);
        folder.write(".hidden.yaml", &shop("hidden", "10.1.0.3"));
        folder.write("notes.txt", &shop("notes", "10.1.0.4"));
        folder.write("yaml", &shop("yaml", "10.1.0.5"));
        fs::create_dir(folder.at("sub.yaml")).unwrap();
        let mut source = open(&folder.0);
        let lines = told(&next(&mut source).await);
        let expected = ["+Service shop/cart", "+Service shop/till", CART, TILL, "+Pod default/p"];
        assert_eq!(lines, expected);
        assert_eq!(source.problems(), []);
    });
}

#[test]
fn an_empty_folder_is_synced_at_once() {
    run(async {
        let folder = Folder::new();
        assert_eq!(next(&mut open(&folder.0)).await, []);
    });
}

#[test]
fn a_missing_folder_is_refused_by_path_and_flag() {
    run(async {
        let folder = Folder::new();
        folder.write("file", "");
        for path in [folder.at("missing"), folder.at("file")] {
            let Err(error) = Source::dir(&path) else { panic!("{} is no folder", path.display()) };
            let text = format!("{error:#}");
            assert!(text.contains(&format!("--source {}", path.display())), "{text}");
        }
    });
}

#[test]
fn new_changed_and_deleted_files_are_told() {
    run(async {
        let folder = Folder::new();
        let mut source = open(&folder.0);
        next(&mut source).await;
        folder.write("a.yaml", &shop("cart", "10.1.0.1"));
        assert_eq!(until(&mut source, CART).await, ["+Service shop/cart", CART]);
        folder.write("a.yaml", &shop("cart", "10.1.0.2"));
        assert_eq!(until(&mut source, CART).await, [CART]);
        fs::remove_file(folder.at("a.yaml")).unwrap();
        let gone = ["-Service shop/cart", "-EndpointSlice shop/cart-1"];
        assert_eq!(until(&mut source, gone[1]).await, gone);
    });
}

#[test]
fn an_editor_that_renames_over_the_file_loses_nothing() {
    run(async {
        let folder = Folder::new();
        folder.write("a.yaml", &shop("cart", "10.1.0.1"));
        let mut source = open(&folder.0);
        next(&mut source).await;
        // First a backup, then the new file over the old name: for a moment there is none.
        fs::rename(folder.at("a.yaml"), folder.at("a.yaml~")).unwrap();
        folder.write(".a.yaml.swp", &shop("cart", "10.1.0.2"));
        fs::rename(folder.at(".a.yaml.swp"), folder.at("a.yaml")).unwrap();
        assert_eq!(until(&mut source, CART).await, [CART]);
    });
}

#[test]
fn a_writer_that_is_not_done_is_waited_for() {
    run(async {
        let folder = Folder::new();
        let old = format!("{}---\n{}", shop("cart", "10.1.0.1"), shop("till", "10.1.0.2"));
        folder.write("a.yaml", &old);
        let mut source = open(&folder.0);
        next(&mut source).await;
        // Half of the new version, and a whole one at that, for YAML.
        let mut file = File::create(folder.at("a.yaml")).unwrap();
        file.write_all(shop("cart", "10.1.0.9").as_bytes()).unwrap();
        folder.write("b.yaml", &shop("other", "10.1.0.3"));
        let meanwhile = until(&mut source, "+EndpointSlice shop/other-1").await;
        assert_eq!(meanwhile, ["+Service shop/other", "+EndpointSlice shop/other-1"]);
        file.write_all(format!("---\n{}", shop("till", "10.1.0.2")).as_bytes()).unwrap();
        drop(file);
        assert_eq!(until(&mut source, CART).await, [CART]);
    });
}

#[test]
fn a_config_maps_symlinks_are_followed_when_they_swap() {
    run(async {
        let folder = Folder::new();
        for (version, endpoint) in [("..v1", "10.1.0.1"), ("..v2", "10.1.0.2")] {
            fs::create_dir(folder.at(version)).unwrap();
            folder.write(&format!("{version}/a.yaml"), &shop("cart", endpoint));
        }
        symlink("..v1", folder.at("..data")).unwrap();
        symlink("..data/a.yaml", folder.at("a.yaml")).unwrap();
        let mut source = open(&folder.0);
        assert_eq!(next(&mut source).await.len(), 2);
        symlink("..v2", folder.at("..data_tmp")).unwrap();
        fs::rename(folder.at("..data_tmp"), folder.at("..data")).unwrap();
        assert_eq!(until(&mut source, CART).await, [CART]);
    });
}

#[test]
fn a_symlink_that_leads_nowhere_keeps_what_serves() {
    run(async {
        let folder = Folder::new();
        folder.write("real", &shop("cart", "10.1.0.1"));
        symlink("real", folder.at("a.yaml")).unwrap();
        let mut source = open(&folder.0);
        next(&mut source).await;
        fs::remove_file(folder.at("real")).unwrap();
        assert_eq!(until_problems(&mut source, 1).await, [""; 0]);
        folder.write("real", &shop("cart", "10.1.0.2"));
        assert_eq!(until(&mut source, CART).await, [CART]);
        assert_eq!(source.problems(), []);
    });
}

#[test]
fn a_broken_file_is_a_problem_until_it_is_mended() {
    run(async {
        let folder = Folder::new();
        folder.write("a.yaml", &shop("cart", "10.1.0.1"));
        let mut source = open(&folder.0);
        next(&mut source).await;
        folder.write("a.yaml", &shop("cart", "10.1.0.300"));
        assert_eq!(until_problems(&mut source, 1).await, [""; 0]);
        assert_eq!(source.problems()[0].field, "endpoints[0].addresses[0]");
        folder.write("a.yaml", &shop("cart", "10.1.0.2"));
        assert_eq!(until(&mut source, CART).await, [CART]);
        assert_eq!(source.problems(), []);
    });
}

#[test]
fn a_folder_that_is_gone_serves_on_and_is_found_again() {
    run(async {
        let folder = Folder::new();
        let path = folder.at("manifests");
        fs::create_dir(&path).unwrap();
        folder.write("manifests/a.yaml", &shop("cart", "10.1.0.1"));
        let mut source = open(&path);
        next(&mut source).await;
        fs::rename(&path, folder.at("away")).unwrap();
        assert_eq!(until_problems(&mut source, 1).await, [""; 0]);
        assert!(source.problems()[0].message.contains("serve on"));

        fs::create_dir(folder.at("new")).unwrap();
        folder.write("new/a.yaml", &shop("cart", "10.1.0.2"));
        fs::rename(folder.at("new"), &path).unwrap();
        assert_eq!(until(&mut source, CART).await, [CART]);
        assert_eq!(source.problems(), []);

        // It is the new folder that is watched now.
        folder.write("away/b.yaml", &shop("away", "10.1.0.7"));
        folder.write("manifests/b.yaml", &shop("till", "10.1.0.3"));
        assert_eq!(until(&mut source, TILL).await, ["+Service shop/till", TILL]);
    });
}

#[test]
fn a_folder_that_is_deleted_and_made_again_is_watched_again() {
    run(async {
        let folder = Folder::new();
        let path = folder.at("manifests");
        fs::create_dir(&path).unwrap();
        let mut source = open(&path);
        next(&mut source).await;
        for round in 1..4 {
            fs::remove_dir_all(&path).unwrap();
            fs::create_dir(&path).unwrap();
            folder.write("manifests/a.yaml", &shop("cart", &format!("10.1.0.{round}")));
            until(&mut source, CART).await;
        }
    });
}

#[test]
fn what_happens_while_nobody_waits_is_told_later() {
    run(async {
        let folder = Folder::new();
        let mut source = open(&folder.0);
        next(&mut source).await;
        folder.write("a.yaml", &shop("cart", "10.1.0.1"));
        // The wait is given up at once, as in a `select!` that another branch has won.
        drop(tokio::time::timeout(Duration::ZERO, source.next()).await);
        folder.write("b.yaml", &shop("till", "10.1.0.2"));
        let lines = until(&mut source, TILL).await;
        assert!(lines.iter().any(|it| it == CART), "{lines:?}");
    });
}
