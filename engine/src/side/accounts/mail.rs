//! Letters to people: a link each, by SMTP, or into the log where no mail server is set.
//!
//! A thread of its own sends them, as a mail server may take its time. What the server refuses for good is dropped with a
//! line in the log; what it cannot take at the moment, or when it is away, is tried again for a quarter of an hour, while
//! other letters go on. Letters that wait are bounded in number, and gone when the process ends: whoever waits for one asks
//! again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use lettre::message::Mailbox;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{Message, SmtpTransport, Transport};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::config::{Mail as MailConfig, SmtpTls};

/// Letters that may wait for the thread, and as many to be tried again.
const QUEUE_MAX: usize = 256;
/// How long a mail server may take for one step.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses before a letter is tried again: a quarter of an hour in all.
const RETRIES: [Duration; 6] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(300),
    Duration::from_secs(450),
];

/// A letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    pub to: String,
    pub subject: String,
    pub text: String,
}

/// Why a letter was not taken, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// It never will be.
    ForGood(String),
    /// It may be later.
    ForNow(String),
}

/// Whatever takes letters.
pub trait Mailer: Send {
    /// Sends a letter. Blocks.
    ///
    /// # Errors
    /// Why it was not taken.
    fn send(&mut self, letter: &Letter) -> Result<(), Refused>;
}

/// By SMTP.
struct Smtp {
    transport: SmtpTransport,
    from: Mailbox,
}

impl Smtp {
    fn new(config: &MailConfig) -> Result<Self, String> {
        let wrong = |error: lettre::transport::smtp::Error| error.to_string();
        let tls = || {
            let mut tls = TlsParameters::builder(config.smtp_host.clone());
            let path = &config.ca_file;
            if !path.is_empty() {
                let pem = std::fs::read(path).map_err(|e| format!("mail.ca_file {path}: {e}"))?;
                if !matches!(CertificateDer::pem_slice_iter(&pem).next(), Some(Ok(_))) {
                    return Err(format!("mail.ca_file {path} holds no certificate"));
                }
                let ca = Certificate::from_pem(&pem);
                let ca = ca.map_err(|e| format!("mail.ca_file {path}: {e}"))?;
                tls = tls.add_root_certificate(ca);
            }
            tls.build().map_err(wrong)
        };
        let tls = match config.smtp_tls {
            SmtpTls::Starttls => Tls::Required(tls()?),
            SmtpTls::Tls => Tls::Wrapper(tls()?),
            SmtpTls::None => Tls::None,
        };
        let mut builder = SmtpTransport::builder_dangerous(&config.smtp_host)
            .port(config.smtp_port)
            .tls(tls)
            .timeout(Some(TIMEOUT));
        if !config.username.is_empty() {
            let path = &config.password_file;
            let password = std::fs::read_to_string(path)
                .map_err(|e| format!("mail.password_file {path}: {e}"))?;
            let credentials =
                Credentials::new(config.username.clone(), password.trim_end().to_owned());
            builder = builder.credentials(credentials);
        }
        let from = config
            .from
            .parse()
            .map_err(|e| format!("mail.from {:?}: {e}", config.from))?;
        Ok(Self {
            transport: builder.build(),
            from,
        })
    }
}

impl Mailer for Smtp {
    fn send(&mut self, letter: &Letter) -> Result<(), Refused> {
        let message = compose(&self.from, letter).map_err(Refused::ForGood)?;
        let sent = self.transport.send(&message);
        sent.map(|_| ()).map_err(|error| {
            let text = error.to_string();
            match error.is_permanent() || error.is_client() {
                true => Refused::ForGood(text),
                false => Refused::ForNow(text),
            }
        })
    }
}

fn compose(from: &Mailbox, letter: &Letter) -> Result<Message, String> {
    let to: Mailbox = letter.to.parse().map_err(|e| format!("the address: {e}"))?;
    // No absence note comes back (RFC 3834, section 5).
    let automatic = HeaderName::new_from_ascii_str("Auto-Submitted");
    Message::builder()
        .from(from.clone())
        .to(to)
        .subject(letter.subject.clone())
        .message_id(None)
        .raw_header(HeaderValue::new(automatic, "auto-generated".to_owned()))
        .header(ContentType::TEXT_PLAIN)
        .body(letter.text.clone())
        .map_err(|error| error.to_string())
}

/// Into the log, for trying things out.
struct Log;

impl Mailer for Log {
    fn send(&mut self, letter: &Letter) -> Result<(), Refused> {
        let Letter { to, subject, text } = letter;
        log::warn!(to, subject; "no mail server is set (mail.smtp_host); the letter: {}", text.replace('\n', " "));
        Ok(())
    }
}

/// Where letters are posted. The thread ends when all clones are gone.
#[derive(Debug, Clone)]
pub(super) struct Post(Sender<Letter>);

impl Post {
    /// Starts the thread.
    ///
    /// # Errors
    /// What is wrong with the settings.
    pub(super) fn start(config: &MailConfig) -> Result<Self, String> {
        let mailer: Box<dyn Mailer> = match config.smtp_host.is_empty() {
            true => Box::new(Log),
            false => Box::new(Smtp::new(config)?),
        };
        let (letters, queue) = crossbeam_channel::bounded(QUEUE_MAX);
        let thread = std::thread::Builder::new().name("mail".to_owned());
        thread
            .spawn(move || run(&queue, mailer))
            .expect("a thread can be started");
        Ok(Self(letters))
    }

    /// Where tests read them.
    #[cfg(test)]
    pub(super) fn to(letters: Sender<Letter>) -> Self {
        Self(letters)
    }

    pub(super) fn send(&self, letter: Letter) {
        if let Err(refused) = self.0.try_send(letter) {
            let letter = refused.into_inner();
            log::error!(to = letter.to, subject = letter.subject; "too many letters wait; this one is dropped");
        }
    }
}

/// A letter that is to be tried again.
struct Waiting {
    letter: Letter,
    tries: usize,
    due: Instant,
}

fn run(queue: &Receiver<Letter>, mut mailer: Box<dyn Mailer>) {
    let mut waiting = VecDeque::<Waiting>::new();
    loop {
        let next = waiting.iter().map(|one| one.due).min();
        let came = match next {
            Some(due) => queue.recv_deadline(due),
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match came {
            Ok(letter) => attempt(&mut *mailer, &mut waiting, letter, 0),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        if let Some(due) = waiting.iter().position(|one| one.due <= now)
            && let Some(one) = waiting.remove(due)
        {
            attempt(&mut *mailer, &mut waiting, one.letter, one.tries);
        }
    }
}

/// Tries a letter that was tried so many times.
fn attempt(mailer: &mut dyn Mailer, waiting: &mut VecDeque<Waiting>, letter: Letter, tries: usize) {
    let (to, subject) = (&*letter.to, &*letter.subject);
    match (mailer.send(&letter), RETRIES.get(tries)) {
        (Ok(()), _) => log::info!(to, subject; "mail sent"),
        (Err(Refused::ForNow(error)), Some(pause)) if waiting.len() < QUEUE_MAX => {
            let in_s = pause.as_secs();
            log::warn!(to, subject, in_s, error; "a letter cannot be sent yet, and is tried again");
            waiting.push_back(Waiting {
                letter,
                tries: tries + 1,
                due: Instant::now() + *pause,
            });
        }
        (Err(Refused::ForNow(error) | Refused::ForGood(error)), _) => {
            log::error!(to, subject, error; "a letter cannot be sent, and is dropped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Refuses the first letters as it is told, takes the others.
    struct Stub(Vec<Refused>, Sender<Letter>);

    impl Mailer for Stub {
        fn send(&mut self, letter: &Letter) -> Result<(), Refused> {
            match self.0.pop() {
                Some(refused) => Err(refused),
                None => self
                    .1
                    .send(letter.clone())
                    .map_err(|_| Refused::ForGood(String::new())),
            }
        }
    }

    fn letter(to: &str) -> Letter {
        Letter {
            to: to.into(),
            subject: "Einladung ins Käseteam 北京".into(),
            text: format!("{}\n.\nGrüße {}\n", "long ".repeat(400), "x".repeat(1500)),
        }
    }

    #[test]
    fn what_is_refused_for_now_is_tried_again_behind_others_and_for_good_is_not() {
        let (taken, came) = crossbeam_channel::unbounded();
        let mut stub = Stub(
            vec![Refused::ForGood("b".into()), Refused::ForNow("a".into())],
            taken,
        );
        let mut waiting = VecDeque::new();
        for to in ["a", "b", "c"] {
            attempt(&mut stub, &mut waiting, letter(to), 0);
        }
        let one = waiting.pop_front().unwrap();
        assert!(one.tries == 1 && one.due > Instant::now() && waiting.is_empty());
        attempt(&mut stub, &mut waiting, one.letter, one.tries);
        let order: Vec<_> = came.try_iter().map(|letter| letter.to).collect();
        assert_eq!(order, ["c", "a"]);
    }

    #[test]
    fn a_letter_that_is_never_taken_is_given_up_and_few_wait() {
        let (taken, _came) = crossbeam_channel::unbounded();
        let mut stub = Stub(vec![Refused::ForNow("away".into()); 2 * QUEUE_MAX], taken);
        let mut waiting = VecDeque::new();
        attempt(&mut stub, &mut waiting, letter("a"), RETRIES.len());
        assert!(waiting.is_empty());
        for _ in 0..QUEUE_MAX + 5 {
            attempt(&mut stub, &mut waiting, letter("a"), 0);
        }
        assert_eq!(waiting.len(), QUEUE_MAX);
    }

    #[test]
    fn letters_say_what_they_are_and_have_short_lines() {
        let from = "Käse <k@example.com>".parse().unwrap();
        let message = compose(&from, &letter("ann@example.com")).unwrap();
        let text = String::from_utf8(message.formatted()).unwrap();
        for header in [
            "Content-Type: text/plain; charset=utf-8",
            "Auto-Submitted: auto-generated",
            "Message-ID: <",
            "Date: ",
        ] {
            assert!(text.contains(header), "{header}: {text}");
        }
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(body.is_ascii(), "{body}");
        assert!(text.lines().all(|line| line.len() <= 998), "{text}");
        assert!(head.is_ascii() && head.contains("=?utf-8?"), "{head}");
    }
}
