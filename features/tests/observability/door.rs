//! The Collector's door, as far as the services know: it may be shut under their eyes.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context as _;
use reqwest::Url;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How whoever comes is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Let in to the Collector.
    Open,
    /// Thrown out, as by a Collector that has died: connections break, new ones too.
    Shut,
    /// Never answered, as by a Collector that stands still.
    Silent,
}

/// Passes everything on to the Collector, as long as it is open. Ends when dropped.
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

    /// Its URL, without a slash at the end.
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

/// Until the mood changes: then the connection breaks.
async fn treat(mut guest: TcpStream, inside: (String, u16), mut moods: watch::Receiver<Mood>) {
    let mood = *moods.borrow_and_update();
    let service = async {
        match mood {
            Mood::Open => {
                if let Ok(mut collector) = TcpStream::connect(inside).await {
                    // However it ends, one of the two has ended it.
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
