//! Reads the maps and asks the agent, for one [`Sample`] after the other.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use admin_api::{Client, ClientError, Status};
use datapath_common::{Feature, maps};

use crate::context::Context;
use crate::datapath::{Datapath, DatapathError, TrafficById};
use crate::format;
use crate::tables::MapUsage;
use crate::top::names::NameCache;
use crate::top::sample::{self, Agent, Owners, Part, Sample};

/// Counting the rows of all maps takes at most one part in so many of the time.
const USAGE_SHARE: u32 = 20;
/// And is not done more often than this.
const USAGE_LEAST: Duration = Duration::from_millis(500);
/// How long the agent is not asked again.
const AGENT_REST: Duration = Duration::from_secs(1);
/// The same, if it did not answer in time.
const SILENT_REST: Duration = Duration::from_secs(10);

/// Reads again and again; keeps what need not be read each time.
#[derive(Debug)]
pub struct Reader {
    context: Context,
    began: Instant,
    names: NameCache,
    owners: Owners,
    node: Option<String>,
    heard: Option<Heard>,
    usage: Option<Usage>,
}

/// What the agent said.
#[derive(Debug)]
struct Heard {
    at: Instant,
    rest: Duration,
    agent: Agent,
    notes: Vec<String>,
}

/// How full the maps are, and whether the programs count services.
#[derive(Debug)]
struct Usage {
    maps: Vec<MapUsage>,
    uncounted: bool,
    faults: Vec<String>,
    at: Instant,
    took: Duration,
}

impl Reader {
    /// Reads what the context names.
    pub fn new(context: &Context) -> Self {
        Self {
            context: context.clone(),
            began: Instant::now(),
            names: NameCache::default(),
            owners: Owners::new(),
            node: None,
            heard: None,
            usage: None,
        }
    }

    /// One reading. What cannot be read is among its faults.
    ///
    /// # Errors
    ///
    /// If nothing can be read: [`DatapathError::Missing`], [`DatapathError::Permission`] or
    /// [`DatapathError::Io`].
    pub fn read(&mut self) -> Result<Sample, DatapathError> {
        let began = Instant::now();
        let datapath = self.context.datapath()?;
        let (agent, notes) = self.ask_agent();
        let mut sample = Sample {
            agent,
            notes,
            ..Sample::default()
        };
        let mut faults = Faults::default();
        self.read_usage(&datapath, &mut sample, &mut faults)?;
        self.read_services(&datapath, &mut sample, &mut faults)?;
        let counters = faults.take(part(&datapath, &[maps::COUNTERS], self.began, || {
            datapath.counters()
        }))?;
        sample.counters = counters.unwrap_or_default();
        if self.usage.as_ref().is_some_and(|usage| usage.uncounted) {
            forget_traffic(&mut sample);
        }
        sample.faults = faults.told;
        sample.took = began.elapsed();
        sample.unix_nanos = format::unix_nanos().unwrap_or_default();
        Ok(sample)
    }

    /// One reading, which says in its faults that there is nothing to read.
    pub fn read_or_tell(&mut self) -> Sample {
        match self.read() {
            Ok(sample) => sample,
            Err(error) => {
                let (agent, _) = self.ask_agent();
                let now = format::unix_nanos().unwrap_or_default();
                Sample::failed(error.to_string(), now, agent)
            }
        }
    }

    fn read_services(
        &mut self,
        datapath: &Datapath,
        sample: &mut Sample,
        faults: &mut Faults,
    ) -> Result<(), DatapathError> {
        // Frontends first: a segment and its backends are written before, and freed long after.
        let frontends = faults.take(datapath.frontends())?.unwrap_or_default();
        let end = sample::segments_end(&frontends);
        let segments = faults
            .take(datapath.segments_below(end))?
            .unwrap_or_default();
        let backends = faults.take(datapath.backends())?.unwrap_or_default();
        let (mut services, users) = sample::services(&frontends, &segments, self.names.names());
        self.names
            .note_missing(services.iter().any(|row| row.name.is_none()));

        let numbers: BTreeSet<u32> = services.iter().map(|row| row.number).collect();
        let counted = part(datapath, &[maps::SVC_STATS], self.began, || {
            Ok(vec![datapath.service_traffic(&numbers)?])
        });
        let counted: Part<TrafficById> = faults.take(counted)?.unwrap_or_default();
        if let Some(traffic) = counted.rows.first() {
            sample::add_traffic(&mut services, traffic);
        }
        sample.services = Part {
            at: counted.at,
            maps: counted.maps,
            rows: services,
        };

        let ids = |v4: bool| -> BTreeSet<u32> {
            let ours = backends.iter().filter(|row| row.addr.is_ipv4() == v4);
            ours.map(|row| row.id).collect()
        };
        let counted = part(
            datapath,
            &[maps::BK_STATS4, maps::BK_STATS6],
            self.began,
            || {
                let v4 = datapath.backend_traffic(4, &ids(true))?;
                Ok(vec![v4, datapath.backend_traffic(6, &ids(false))?])
            },
        );
        let counted: Part<TrafficById> = faults.take(counted)?.unwrap_or_default();
        let traffic = |family: u8, id: u32| {
            let table = counted.rows.get(usize::from(family == 6))?;
            table.get(&id).copied()
        };
        let rows = sample::backends(&backends, &users, &self.owners, traffic);
        self.owners = sample::owners(&rows);
        sample.backends = Part {
            at: counted.at,
            maps: counted.maps,
            rows,
        };
        Ok(())
    }

    /// Counts the maps' rows if the last count is old enough for what it took.
    fn read_usage(
        &mut self,
        datapath: &Datapath,
        sample: &mut Sample,
        faults: &mut Faults,
    ) -> Result<(), DatapathError> {
        let now = Instant::now();
        let due = self.usage.as_ref().is_none_or(|usage| {
            now.saturating_duration_since(usage.at) >= USAGE_LEAST.max(usage.took * USAGE_SHARE)
        });
        if due {
            let mut counted = Faults::default();
            let mut rows = Vec::with_capacity(maps::ALL.len());
            for map in maps::ALL {
                rows.extend(counted.take(datapath.usage(map))?);
            }
            let config = counted.take(datapath.config())?.flatten();
            self.usage = Some(Usage {
                maps: rows,
                uncounted: config.is_some_and(|c| c.features & Feature::COUNT_SERVICES == 0),
                faults: counted.told,
                at: now,
                took: now.elapsed(),
            });
        }
        if let Some(usage) = &self.usage {
            sample.maps.clone_from(&usage.maps);
            sample.maps_age = usage.at.elapsed();
            for fault in &usage.faults {
                faults.tell(fault.clone());
            }
        }
        Ok(())
    }

    /// What the agent said, asked again if that is old; and names if it is time to ask for them.
    fn ask_agent(&mut self) -> (Agent, Vec<String>) {
        if let Some(heard) = &self.heard
            && heard.at.elapsed() < heard.rest
        {
            return (heard.agent.clone(), heard.notes.clone());
        }
        let mut notes = Vec::new();
        let (agent, rest) = match self.status() {
            Ok((status, mut client)) => {
                let id = (status.pid, status.started_at_secs);
                if self.names.due(id, Instant::now())
                    && let Err(error) = self.names.refresh(&mut client, id)
                {
                    notes.push(format!("names may be old: {error}"));
                }
                self.node = Some(status.node.clone());
                (up(status), AGENT_REST)
            }
            Err(error) => {
                let silent = matches!(error, ClientError::Timeout { .. });
                let rest = if silent { SILENT_REST } else { AGENT_REST };
                (down(self.node.clone(), error.to_string()), rest)
            }
        };
        self.heard = Some(Heard {
            at: Instant::now(),
            rest,
            agent: agent.clone(),
            notes: notes.clone(),
        });
        (agent, notes)
    }

    fn status(&self) -> Result<(Status, Client), ClientError> {
        let mut client = self.context.agent()?;
        Ok((client.status()?, client))
    }
}

/// Rows of these maps, with the time half-way through their reading. Maps that are replaced meanwhile are
/// taken for the former ones, once.
fn part<T>(
    datapath: &Datapath,
    names: &[&'static str],
    began: Instant,
    read: impl FnOnce() -> Result<Vec<T>, DatapathError>,
) -> Result<Part<T>, DatapathError> {
    let ids = names.iter().map(|map| datapath.map_id(map));
    let maps = ids.collect::<Result<_, _>>()?;
    let start = began.elapsed();
    let rows = read()?;
    Ok(Part {
        at: (start + began.elapsed()) / 2,
        maps,
        rows,
    })
}

/// Zeros that nobody counts are no traffic.
fn forget_traffic(sample: &mut Sample) {
    for row in &mut sample.services.rows {
        row.traffic = None;
    }
    for row in &mut sample.backends.rows {
        row.traffic = None;
    }
    let note = "services are not counted: the agent runs with --count-services=false";
    sample.notes.push(note.into());
}

/// What could not be read.
#[derive(Default)]
struct Faults {
    told: Vec<String>,
}

impl Faults {
    /// The result, or `None` with its fault remembered; what holds for all maps is an error.
    fn take<T>(&mut self, result: Result<T, DatapathError>) -> Result<Option<T>, DatapathError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error @ (DatapathError::Missing { .. } | DatapathError::Permission { .. })) => {
                Err(error)
            }
            Err(error) => {
                self.tell(error.to_string());
                Ok(None)
            }
        }
    }

    /// Each fault once: a map is read by more than one part.
    fn tell(&mut self, fault: String) {
        if !self.told.contains(&fault) {
            self.told.push(fault);
        }
    }
}

fn up(status: Status) -> Agent {
    let now_secs = format::unix_nanos().unwrap_or_default() / 1_000_000_000;
    let maps = status.map_errors.iter();
    let maps = maps.map(|error| format!("map {}: {}", error.map, error.message));
    Agent {
        running: true,
        faults: status.faults.iter().cloned().chain(maps).collect(),
        age_secs: Some(now_secs.saturating_sub(status.started_at_secs)),
        warnings: status.warnings.len() as u64,
        node: Some(status.node),
        waiting_for: status.waiting_for,
        error: None,
    }
}

fn down(node: Option<String>, error: String) -> Agent {
    Agent {
        node,
        error: Some(error),
        ..Agent::default()
    }
}
