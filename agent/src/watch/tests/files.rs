//! Several files taken together.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::files::{Files, Read};
use super::{place, shop, told};
use crate::table::Catalog;

/// The folder's content: names and texts.
fn folder(files: &[(&str, &str)]) -> BTreeMap<Arc<str>, Read> {
    files.iter().map(|(name, text)| (Arc::from(*name), Read::Content(text.as_bytes().to_vec()))).collect()
}

const BOTH: [&str; 2] = ["+Service shop/cart", "+EndpointSlice shop/cart-1"];

#[test]
fn only_what_differs_is_told() {
    let mut files = Files::default();
    let first = shop("cart", "10.1.0.1");
    assert_eq!(told(&files.update(folder(&[("a.yaml", &first)]))), BOTH);
    assert_eq!(files.update(folder(&[("a.yaml", &first)])), []);
    let second = shop("cart", "10.1.0.2");
    assert_eq!(told(&files.update(folder(&[("a.yaml", &second)]))), ["+EndpointSlice shop/cart-1"]);
    assert_eq!(told(&files.update(folder(&[("b.yaml", &second)]))), [""; 0], "a file under another name");
    assert_eq!(told(&files.update(folder(&[]))), ["-Service shop/cart", "-EndpointSlice shop/cart-1"]);
}

#[test]
fn a_broken_file_goes_on_with_its_last_good_version_until_it_is_mended() {
    let mut files = Files::default();
    let (first, second) = (shop("cart", "10.1.0.1"), shop("cart", "10.1.0.2"));
    files.update(folder(&[("a.yaml", &first)]));
    assert_eq!(files.update(folder(&[("a.yaml", &second.replace("8080", "80800"))])), []);
    let [problem] = &files.problems()[..] else { panic!("{:?}", files.problems()) };
    assert_eq!((place(problem).0, &*problem.field), ("a.yaml".into(), "ports[0].port"));
    assert_eq!(told(&files.update(folder(&[("a.yaml", &second)]))), ["+EndpointSlice shop/cart-1"]);
    assert_eq!(files.problems(), []);

    files.update(folder(&[("a.yaml", "kind: [")]));
    assert_eq!(files.update(folder(&[("a.yaml", &second)])), [], "back to what serves");
    assert_eq!(files.problems(), []);
}

#[test]
fn a_broken_file_holds_back_no_other() {
    let mut files = Files::default();
    files.update(folder(&[("a.yaml", &shop("cart", "10.1.0.1"))]));
    let updates = files.update(folder(&[("a.yaml", "kind: ["), ("b.yaml", &shop("till", "10.1.0.2"))]));
    assert_eq!(told(&updates), ["+Service shop/till", "+EndpointSlice shop/till-1"]);
}

#[test]
fn a_file_that_was_never_good_serves_nothing_and_says_so() {
    let mut files = Files::default();
    assert_eq!(files.update(folder(&[("a.yaml", "kind: [")])), []);
    assert!(files.problems()[0].message.ends_with("; the whole file is ignored"), "{:?}", files.problems());
    assert_eq!(files.problems().len(), 1);
    assert_eq!(files.update(folder(&[])), []);
    assert_eq!(files.problems(), []);
}

#[test]
fn an_unreadable_file_keeps_its_objects_and_a_deleted_one_loses_them() {
    let mut files = Files::default();
    files.update(folder(&[("a.yaml", &shop("cart", "10.1.0.1"))]));
    let unreadable = BTreeMap::from([(Arc::from("a.yaml"), Read::Unreadable("permission denied".to_owned()))]);
    assert_eq!(files.update(unreadable), []);
    assert!(
        files.problems()[0]
            .to_string()
            .starts_with("a.yaml: permission denied; its last good version serves on (cure: ")
    );
    assert_eq!(files.update(BTreeMap::from([(Arc::from("a.yaml"), Read::BeingWritten)])), []);
    let no_text = BTreeMap::from([(Arc::from("a.yaml"), Read::Content(vec![0xff, 0xfe]))]);
    assert_eq!(files.update(no_text), []);
    assert!(files.problems()[0].message.contains("UTF-8"));
    assert_eq!(files.update(folder(&[])).len(), 2);
}

#[test]
fn a_file_with_other_objects_than_before_loses_the_old_ones() {
    let mut files = Files::default();
    files.update(folder(&[("a.yaml", &shop("cart", "10.1.0.1"))]));
    let updates = files.update(folder(&[("a.yaml", &shop("till", "10.1.0.1"))]));
    let expected =
        ["-Service shop/cart", "-EndpointSlice shop/cart-1", "+Service shop/till", "+EndpointSlice shop/till-1"];
    assert_eq!(told(&updates), expected);
}

#[test]
fn of_one_object_in_two_files_the_serving_one_stays() {
    let (first, second) = (shop("cart", "10.1.0.1"), shop("cart", "10.1.0.2"));
    let mut files = Files::default();
    files.update(folder(&[("m.yaml", &first)]));
    assert_eq!(files.update(folder(&[("a.yaml", &second), ("m.yaml", &first)])), []);
    let problems = files.problems();
    assert_eq!(problems.len(), 2);
    assert_eq!(place(&problems[1]), ("a.yaml".into(), 11, 0));
    assert!(problems[0].message.contains("Service shop/cart is also in m.yaml"), "{}", problems[0]);

    // The other takes over when the serving one goes.
    assert_eq!(told(&files.update(folder(&[("a.yaml", &second)]))), ["+EndpointSlice shop/cart-1"]);
    assert_eq!(files.problems(), []);
}

#[test]
fn of_one_object_in_two_new_files_the_first_by_name_serves() {
    let (first, second) = (shop("cart", "10.1.0.1"), shop("cart", "10.1.0.2"));
    let mut files = Files::default();
    let mut catalog = Catalog::default();
    catalog.apply(files.update(folder(&[("b.yaml", &second), ("a.yaml", &first)])));
    let service = catalog.table().services.values().next().unwrap();
    assert_eq!(service.endpoints[0].addr.to_string(), "10.1.0.1:8080");
    assert!(files.problems().iter().all(|it| &*place(it).0 == "b.yaml"));
}

#[test]
fn of_one_object_twice_in_a_file_the_first_serves() {
    let text = format!("{}---\n{}", shop("cart", "10.1.0.1"), shop("cart", "10.1.0.2"));
    let mut files = Files::default();
    assert_eq!(told(&files.update(folder(&[("a.yaml", &text)]))), BOTH);
    let problems = files.problems();
    assert_eq!(problems.len(), 2);
    assert_eq!(place(&problems[0]).1, 25);
    assert!(problems[0].message.contains("earlier in this file"), "{}", problems[0]);
}

#[test]
fn a_file_cut_off_within_a_line_never_loses_what_serves() {
    let text = format!("{}---\n{}", shop("cart", "10.1.0.1"), shop("till", "10.1.0.123"));
    let mut files = Files::default();
    files.update(folder(&[("a.yaml", &text)]));
    let within_a_line = |end: &usize| *end == 0 || (!text[..*end].ends_with('\n') && text.as_bytes()[*end] != b'\n');
    for end in (0..text.len()).filter(within_a_line) {
        assert_eq!(files.update(folder(&[("a.yaml", &text[..end])])), [], "{end}: {}", &text[..end]);
        assert_eq!(files.problems().len(), 1, "{end}");
        assert_eq!(files.update(folder(&[("a.yaml", &text)])), [], "{end}");
        assert_eq!(files.problems(), [], "{end}");
    }
}

#[test]
fn any_cut_at_all_leaves_a_state_from_which_the_whole_file_recovers() {
    let text = format!("{}---\n{}", shop("cart", "10.1.0.1"), shop("till", "10.1.0.123"));
    let mut catalog = Catalog::default();
    let mut files = Files::default();
    let mut take = |files: &mut Files, text: &str| {
        catalog.apply(files.update(folder(&[("a.yaml", text)])));
        let built = catalog.built();
        // All but the ids, which are given out once.
        let services = built.table.services.values().map(|it| (it.addr, (it.name.clone(), it.endpoints.clone())));
        (services.collect::<BTreeMap<_, _>>(), built.left_alone, built.problems)
    };
    let whole = take(&mut files, &text);
    assert_eq!((whole.0.len(), whole.1.len()), (1, 1), "both are at one address");
    for end in 0..text.len() {
        take(&mut files, &text[..end]);
        assert_eq!(take(&mut files, &text), whole, "{end}");
        assert_eq!(files.problems(), [], "{end}");
    }
}

#[test]
fn the_end_of_a_file_can_be_removed_on_purpose() {
    let text = format!("{}---\n{}", shop("cart", "10.1.0.1"), shop("till", "10.1.0.2"));
    let mut files = Files::default();
    files.update(folder(&[("a.yaml", &text)]));
    let updates = files.update(folder(&[("a.yaml", &shop("cart", "10.1.0.1"))]));
    assert_eq!(told(&updates), ["-Service shop/till", "-EndpointSlice shop/till-1"]);
    let updates = files.update(folder(&[("a.yaml", "# nothing for now\n")]));
    assert_eq!(updates.len(), 2);
}
