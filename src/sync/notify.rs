//! Kernel notifications: what changed in the bucket is told to the kernel exactly, from a thread of its own.
//!
//! Invariant: no caller ever waits for the kernel here, so none can hold a lock that the kernel's answer needs.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::sync::mpsc;

use fuser::{INodeNo, Notifier};

use crate::tree::Ino;
use crate::volume::Notice;

enum Message {
    Attach(Notifier),
    Tell(Vec<Notice>),
    Report(tokio::sync::oneshot::Sender<()>),
}

/// The way to the thread that tells the kernel.
pub(super) struct Notifications {
    sender: mpsc::Sender<Message>,
}

impl Notifications {
    pub fn start() -> Self {
        let (sender, receiver) = mpsc::channel();
        let spawned = std::thread::Builder::new().name("notify".into()).spawn(move || run(&receiver));
        if let Err(error) = spawned {
            tracing::error!(%error, "no thread for kernel notifications: listings may be stale until they expire");
        }
        Self { sender }
    }

    pub fn attach(&self, notifier: Notifier) {
        self.send(Message::Attach(notifier));
    }

    pub fn tell(&self, notices: Vec<Notice>) {
        if !notices.is_empty() {
            self.send(Message::Tell(notices));
        }
    }

    /// Returns when the kernel has heard everything that was told before.
    pub async fn delivered(&self) {
        let (done, heard) = tokio::sync::oneshot::channel();
        self.send(Message::Report(done));
        if heard.await.is_err() {
            tracing::debug!("nobody tells the kernel any more");
        }
    }

    fn send(&self, message: Message) {
        if self.sender.send(message).is_err() {
            tracing::warn!("the notification thread is gone");
        }
    }
}

fn run(receiver: &mpsc::Receiver<Message>) {
    let mut notifier = None;
    while let Ok(message) = receiver.recv() {
        match message {
            Message::Attach(new) => notifier = Some(new),
            Message::Tell(notices) => {
                let Some(notifier) = &notifier else { continue };
                notices.iter().for_each(|notice| tell(notifier, notice));
                // Their attributes, and a listing that the kernel keeps: it may have names that nothing else is known of.
                let parents: HashSet<Ino> = notices.iter().filter_map(Notice::parent).collect();
                parents.into_iter().for_each(|dir| tell(notifier, &Notice::Content(dir)));
            }
            // Whoever asked may have given up waiting.
            Message::Report(done) => drop(done.send(())),
        }
    }
}

fn tell(notifier: &Notifier, notice: &Notice) {
    let told = match notice {
        Notice::Entry { parent, name } => notifier.inval_entry(INodeNo(parent.0), OsStr::new(name)),
        Notice::Inode(ino) => notifier.inval_inode(INodeNo(ino.0), -1, 0),
        Notice::Content(ino) => notifier.inval_inode(INodeNo(ino.0), 0, 0),
    };
    // ENOENT: the kernel does not know it, so there is nothing stale. ENODEV and EBADF: the mount is gone.
    match told {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(error) => tracing::debug!(?notice, %error, "kernel notification"),
    }
}
