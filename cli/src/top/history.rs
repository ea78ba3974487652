//! The last values of a few rates, for curves.

use std::collections::VecDeque;

use crate::top::view::View;

/// Values that are kept: a screen is hardly wider.
const MOST: usize = 240;

/// The last values of a few rates. A reading without a rate has no value.
#[derive(Clone, Debug, Default)]
pub struct History {
    flows: VecDeque<Option<f64>>,
    hooks: Vec<VecDeque<Option<f64>>>,
}

impl History {
    /// Adds what a reading showed.
    pub fn push(&mut self, view: &View) {
        push(&mut self.flows, view.all_services.map(|rates| rates.flows));
        for (at, hook) in view.hooks.iter().enumerate() {
            if self.hooks.len() <= at {
                self.hooks.push(VecDeque::new());
            }
            if let Some(values) = self.hooks.get_mut(at) {
                push(values, hook.rates.map(|rates| rates.packets));
            }
        }
    }

    /// New flows for each second of all services.
    pub fn flows(&self) -> impl DoubleEndedIterator<Item = Option<f64>> {
        self.flows.iter().copied()
    }

    /// Packets for each second of the hook with this number.
    pub fn packets(&self, hook: usize) -> impl DoubleEndedIterator<Item = Option<f64>> {
        self.hooks.get(hook).into_iter().flatten().copied()
    }
}

fn push(values: &mut VecDeque<Option<f64>>, value: Option<f64>) {
    values.push_back(value);
    if values.len() > MOST {
        values.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::view::{HookRates, HookRow, Rates};

    #[test]
    fn only_the_last_values_are_kept() {
        let mut history = History::default();
        for n in 0..MOST + 5 {
            let packets = n as f64;
            history.push(&View {
                all_services: (n % 2 == 0).then_some(Rates {
                    flows: packets,
                    ..Rates::default()
                }),
                hooks: vec![HookRow {
                    hook: "xdp".into(),
                    rates: Some(HookRates {
                        packets,
                        ..HookRates::default()
                    }),
                    packets: 0,
                    bytes: 0,
                }],
                ..View::default()
            });
        }
        assert_eq!(history.packets(0).count(), MOST);
        assert_eq!(
            history.packets(0).next_back(),
            Some(Some((MOST + 4) as f64))
        );
        assert_eq!(history.packets(1).count(), 0);
        let last: Vec<_> = history.flows().rev().take(2).collect();
        assert_eq!(last, [Some((MOST + 4) as f64), None]);
    }
}
