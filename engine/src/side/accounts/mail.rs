//! Letters to people: a link each, by SMTP, or into the log where no mail server is set.
//!
//! A thread of its own sends them, as a mail server may take its time. Its queue is short; a letter that finds it full, or
//! that the server does not take in three tries, is dropped with a line in the log: whoever waits for it asks again.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use lettre::message::Mailbox;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::{Message, SmtpTransport, Transport};

use crate::config::{Mail as MailConfig, SmtpTls};

/// Letters that may wait.
const QUEUE_MAX: usize = 256;
/// How long a mail server may take for one step.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses before a letter is tried again.
const RETRIES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

/// A letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    pub to: String,
    pub subject: String,
    pub text: String,
}

/// Whatever takes letters.
pub trait Mailer: Send {
    /// Sends a letter. Blocks.
    ///
    /// # Errors
    /// Why it was not taken, for the operator.
    fn send(&mut self, letter: &Letter) -> Result<(), String>;
}

/// By SMTP.
struct Smtp {
    transport: SmtpTransport,
    from: Mailbox,
}

impl Smtp {
    fn new(config: &MailConfig) -> Result<Self, String> {
        let wrong = |error: lettre::transport::smtp::Error| error.to_string();
        let tls = || TlsParameters::new(config.smtp_host.clone()).map_err(wrong);
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
    fn send(&mut self, letter: &Letter) -> Result<(), String> {
        let to: Mailbox = letter.to.parse().map_err(|e| format!("the address: {e}"))?;
        let message = Message::builder()
            .from(self.from.clone())
            .to(to)
            .subject(letter.subject.clone())
            .body(letter.text.clone())
            .map_err(|error| error.to_string())?;
        self.transport
            .send(&message)
            .map(|_| ())
            .map_err(|error| error.to_string())
    }
}

/// Into the log, for trying things out.
struct Log;

impl Mailer for Log {
    fn send(&mut self, letter: &Letter) -> Result<(), String> {
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

    pub(super) fn send(&self, letter: Letter) {
        if let Err(refused) = self.0.try_send(letter) {
            let letter = refused.into_inner();
            log::error!(to = letter.to, subject = letter.subject; "too many letters wait; this one is dropped");
        }
    }
}

fn run(queue: &Receiver<Letter>, mut mailer: Box<dyn Mailer>) {
    while let Ok(letter) = queue.recv() {
        let mut sent = mailer.send(&letter);
        for pause in RETRIES {
            if sent.is_ok() {
                break;
            }
            std::thread::sleep(pause);
            sent = mailer.send(&letter);
        }
        match sent {
            Ok(()) => log::info!(to = letter.to, subject = letter.subject; "mail sent"),
            Err(error) => {
                log::error!(to = letter.to, subject = letter.subject, error; "a letter cannot be sent")
            }
        }
    }
}
