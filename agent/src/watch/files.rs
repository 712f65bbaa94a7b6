//! What the files of a folder say, taken together. In: what was read of each file. Out: updates, and the problems that
//! last. Pure. A file that cannot be understood goes on saying what it said last.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::parse::{Parsed, parse};
use crate::table::object::{Key, Object};
use crate::table::{Place, Problem, Update};

/// What came of reading one file.
pub(super) enum Read {
    Content(Vec<u8>),
    /// Why not, in the system's words.
    Unreadable(String),
    /// Someone is writing to it.
    BeingWritten,
}

/// The files of a folder by name.
#[derive(Default)]
pub(super) struct Files {
    files: BTreeMap<Arc<str>, File>,
    /// What has been told: each object, and the file that holds it.
    serving: BTreeMap<Key, (Arc<str>, Object)>,
}

#[derive(Default)]
struct File {
    /// The last content that made sense.
    good: Vec<u8>,
    objects: Vec<Parsed>,
    /// What came after it and makes none.
    bad: Option<Bad>,
}

struct Bad {
    content: Option<Vec<u8>>,
    problem: Problem,
}

impl Files {
    /// Takes in all files of the folder as they are now and tells what has changed.
    pub(super) fn update(&mut self, now: BTreeMap<Arc<str>, Read>) -> Vec<Update> {
        self.files.retain(|name, _| now.contains_key(name));
        for (name, read) in now {
            match read {
                Read::Content(content) => self.files.entry(name.clone()).or_default().take(&name, content),
                Read::Unreadable(why) => self.files.entry(name.clone()).or_default().fail(&name, why),
                Read::BeingWritten => {}
            }
        }
        self.settle()
    }

    /// All that is wrong with the files now.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let bad = self.files.values().filter_map(|file| file.bad.as_ref()).map(|bad| bad.problem.clone());
        let mut problems: Vec<Problem> = bad.collect();
        for (name, file) in &self.files {
            for (index, parsed) in file.objects.iter().enumerate() {
                let key = parsed.object.key();
                let owner = &self.serving[&key].0;
                let first = file.objects.iter().position(|it| it.object.key() == key);
                if owner != name || first != Some(index) {
                    problems.push(twice(name, parsed, owner));
                }
            }
        }
        problems
    }

    /// Compares what the files say together with what has been told.
    fn settle(&mut self) -> Vec<Update> {
        let mut said: BTreeMap<Key, (&Arc<str>, &Object)> = BTreeMap::new();
        for (name, file) in &self.files {
            for Parsed { object, .. } in &file.objects {
                let key = object.key();
                let owner = self.serving.get(&key).map(|(owner, _)| owner);
                match said.get(&key) {
                    // The file that serves already stays; within a file, and at the beginning, the first one.
                    Some((holder, _)) if *holder == name || owner != Some(name) => {}
                    _ => {
                        said.insert(key, (name, object));
                    }
                }
            }
        }
        let gone = self.serving.keys().filter(|key| !said.contains_key(key));
        let mut updates: Vec<Update> = gone.map(|key| Update::Delete { key: key.clone(), uid: None }).collect();
        let changed =
            said.iter().filter(|(key, (_, object))| self.serving.get(key).is_none_or(|(_, old)| old != *object));
        updates.extend(changed.map(|(_, (_, object))| Update::Apply((*object).clone())));
        self.serving = said.into_iter().map(|(key, (name, object))| (key, (name.clone(), object.clone()))).collect();
        updates
    }
}

impl File {
    fn take(&mut self, name: &Arc<str>, content: Vec<u8>) {
        if content == self.good {
            self.bad = None;
        } else if self.bad.as_ref().is_none_or(|bad| bad.content.as_ref() != Some(&content)) {
            match self.read(name, &content) {
                Ok(objects) => *self = File { good: content, objects, bad: None },
                Err(problem) => self.bad = Some(Bad { content: Some(content), problem: self.told(problem) }),
            }
        }
    }

    fn fail(&mut self, name: &Arc<str>, why: String) {
        let problem = whole(name, why, "make it a readable file, or delete it so that its objects go");
        self.bad = Some(Bad { content: None, problem: self.told(problem) });
    }

    /// With what becomes of the rest of the file.
    fn told(&self, problem: Problem) -> Problem {
        let meanwhile =
            if self.objects.is_empty() { "the whole file is ignored" } else { "its last good version serves on" };
        Problem { message: format!("{}; {meanwhile}", problem.message), ..problem }
    }

    fn read(&self, name: &Arc<str>, content: &[u8]) -> Result<Vec<Parsed>, Problem> {
        if self.was_cut_to(content) {
            let message = format!("the file is cut off after {} of {} bytes", content.len(), self.good.len());
            return Err(whole(name, message, "write it to its end, or delete it so that its objects go"));
        }
        let text = std::str::from_utf8(content)
            .map_err(|error| whole(name, format!("no UTF-8: {error}"), "save the file as UTF-8"))?;
        parse(name, text)
    }

    /// Whether this is what a writer leaves that was interrupted: nothing, or the same as before up to the middle of a
    /// line. A cut between lines may as well be meant.
    fn was_cut_to(&self, content: &[u8]) -> bool {
        let serves = !self.objects.is_empty();
        let at_line_end = content.ends_with(b"\n") || self.good.get(content.len()) == Some(&b'\n');
        serves && self.good.starts_with(content) && (content.is_empty() || !at_line_end)
    }
}

fn whole(file: &Arc<str>, message: String, cure: &str) -> Problem {
    let place = Place::File { file: file.clone(), line: 0, column: 0 };
    Problem { place, field: String::new(), message, cure: cure.to_owned() }
}

fn twice(file: &Arc<str>, parsed: &Parsed, owner: &Arc<str>) -> Problem {
    let key = parsed.object.key();
    let where_else = if owner == file { "earlier in this file".to_owned() } else { format!("in {owner}") };
    Problem {
        place: Place::File { file: file.clone(), line: parsed.line, column: 0 },
        field: String::new(),
        message: format!("{key} is also {where_else}, which is the one that serves; this one is ignored"),
        cure: "remove one of the two".to_owned(),
    }
}
