//! SIGTERM, SIGINT and SIGHUP as values: the first asks for the end, another SIGTERM or SIGINT for haste.
//!
//! Depends on tokio only. A supervised worker hears of signals from its supervisor and of none directly: a terminal and
//! systemd send theirs to both processes, and the same Ctrl-C must not count twice.

use std::io;
use std::os::fd::OwnedFd;

use tokio::net::UnixDatagram;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal that ends a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGHUP.
    Hangup,
}

impl Ending {
    pub(super) const ALL: [Self; 3] = [Self::Interrupt, Self::Terminate, Self::Hangup];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::Hangup => "SIGHUP",
        }
    }

    /// Its number.
    pub(super) fn number(self) -> i32 {
        match self {
            Self::Interrupt => libc::SIGINT,
            Self::Terminate => libc::SIGTERM,
            Self::Hangup => libc::SIGHUP,
        }
    }

    /// The message that passes it on.
    pub(super) fn code(self) -> u8 {
        self.number().to_le_bytes()[0]
    }
}

/// The signals from here on; without this value they would kill the process.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    supervisor: Option<UnixDatagram>,
}

impl Signals {
    /// Begins to listen. Call it within a tokio runtime.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            supervisor: None,
        })
    }

    /// Those that the supervisor passes on; what comes directly is caught and not looked at.
    pub(super) fn from_supervisor(socket: &OwnedFd) -> io::Result<Self> {
        // Not of this type, but read in the same way: a packet at a time.
        let socket = std::os::unix::net::UnixDatagram::from(socket.try_clone()?);
        let supervisor = Some(UnixDatagram::from_std(socket)?);
        Ok(Self { supervisor, ..Self::listen()? })
    }

    /// The next one. Safe to cancel.
    pub async fn next(&mut self) -> Ending {
        if let Some(socket) = &self.supervisor {
            return passed_on(socket).await;
        }
        tokio::select! {
            _ = self.interrupt.recv() => Ending::Interrupt,
            _ = self.terminate.recv() => Ending::Terminate,
            _ = self.hangup.recv() => Ending::Hangup,
        }
    }
}

async fn passed_on(socket: &UnixDatagram) -> Ending {
    loop {
        let mut code = [0];
        match socket.recv(&mut code).await {
            Ok(1..) => {
                if let Some(signal) = Ending::ALL.into_iter().find(|signal| signal.code() == code[0]) {
                    return signal;
                }
            }
            // The supervisor is gone, and the kernel is about to kill this process for it.
            Ok(0) | Err(_) => std::future::pending().await,
        }
    }
}
