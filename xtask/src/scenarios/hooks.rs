//! How `loadtest scenarios`, which runs in a pod, asks this program for something: its hooks' shell commands write a word
//! to a file that both see and wait for another one. In: words; out: what the command prints.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

const ASKED: &str = "asked";
const ANSWER: &str = "answer";
/// How often it is looked whether a command asks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The two files' folder.
pub(super) struct Hooks(PathBuf);

impl Hooks {
    pub(super) fn new(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// A shell command that asks for `words` (in which the shell replaces variables) and prints the answer.
    pub(super) fn command(&self, words: &str) -> String {
        let folder = self.0.display();
        format!(
            "cd {folder} && printf %s \"{words}\" > {ASKED}.draft && mv {ASKED}.draft {ASKED} && \
             until [ -e {ANSWER} ]; do sleep 0.01; done && cat {ANSWER} && rm {ANSWER}"
        )
    }

    /// Answers each command until `done`.
    pub(super) fn serve(
        &self,
        mut done: impl FnMut() -> Result<bool>,
        mut answer: impl FnMut(&str) -> Result<String>,
    ) -> Result<()> {
        let path = |name: &str| self.0.join(name);
        while !done()? {
            if let Ok(words) = fs::read_to_string(path(ASKED)) {
                fs::remove_file(path(ASKED))?;
                let said = answer(&words).with_context(|| format!("cannot {words}"))?;
                let draft = path("answer.draft");
                fs::write(&draft, said)?;
                fs::rename(draft, path(ANSWER))?;
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_gets_the_answer_to_its_words() {
        let folder = crate::host::target().join(format!("hooks-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let hooks = Hooks::new(&folder);
        let command = hooks.command("say $WORD");
        let asking = thread::spawn(move || {
            std::process::Command::new("sh").args(["-c", &command]).env("WORD", "yes").output().unwrap()
        });
        hooks.serve(|| Ok(asking.is_finished()), |words| Ok(format!("heard {words}"))).unwrap();
        let output = asking.join().unwrap();
        assert_eq!((output.status.success(), &*output.stdout), (true, &b"heard say yes"[..]));
        fs::remove_dir_all(folder).unwrap();
    }
}
