//! A proxy in front of the Collector, which can simulate its failures.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context as _;
use reqwest::Url;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The behaviour of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Forwards connections to the Collector.
    Open,
    /// Closes current and new connections, as if the Collector had died.
    Shut,
    /// Accepts connections but never responds, as if the Collector were frozen.
    Silent,
}

/// A proxy that forwards everything to the Collector while it is open. Stops when dropped.
pub(crate) struct Door {
    address: SocketAddr,
    mood: watch::Sender<Mood>,
    _porter: JoinSet<()>,
}

impl Door {
    pub(crate) async fn open(collector: &Url) -> anyhow::Result<Self> {
        let host = collector.host_str().context("no host")?.to_owned();
        let inside = (host, collector.port_or_known_default().context("no port")?);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (mood, moods) = watch::channel(Mood::Open);
        let mut porter = JoinSet::new();
        porter.spawn(receive(listener, inside, moods));
        Ok(Self { address, mood, _porter: porter })
    }

    /// Its URL, without a trailing slash.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn be(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }
}

async fn receive(listener: TcpListener, inside: (String, u16), moods: watch::Receiver<Mood>) {
    let mut guests = JoinSet::new();
    loop {
        if let Ok((guest, _)) = listener.accept().await {
            guests.spawn(treat(guest, inside.clone(), moods.clone()));
        }
        while guests.try_join_next().is_some() {}
    }
}

/// Serves a connection until the mood changes, which closes it.
async fn treat(mut guest: TcpStream, inside: (String, u16), mut moods: watch::Receiver<Mood>) {
    let mood = *moods.borrow_and_update();
    let service = async {
        match mood {
            Mood::Open => {
                if let Ok(mut collector) = TcpStream::connect(inside).await {
                    // Errors are ignored: either side may end the connection.
                    let _ = copy_bidirectional(&mut guest, &mut collector).await;
                }
            }
            Mood::Shut => {}
            Mood::Silent => std::future::pending().await,
        }
    };
    tokio::select! {
        () = service => {}
        _ = moods.changed() => {}
    }
}
