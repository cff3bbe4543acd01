//! Which cores take the interrupts of devices, from `/proc/interrupts`: a line of core names, then for each interrupt
//! its name, a count per core, and what it is. Interrupts of devices have numbers for names; those of the processor
//! itself (timers, calls from other cores) have letters, and are no property of a core.

use std::collections::HashMap;

/// Interrupts of devices that each core has taken since the system was started. Empty where that cannot be told.
pub fn by_core() -> HashMap<usize, u64> {
    std::fs::read_to_string("/proc/interrupts").map(|text| parse(&text)).unwrap_or_default()
}

fn parse(text: &str) -> HashMap<usize, u64> {
    let mut lines = text.lines();
    let cores: Vec<usize> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|name| name.strip_prefix("CPU")?.parse().ok())
        .collect();
    let mut taken = HashMap::new();
    for line in lines {
        let Some((name, counts)) = line.split_once(':') else { continue };
        if name.trim().parse::<u32>().is_err() {
            continue;
        }
        for (core, count) in cores.iter().zip(counts.split_whitespace()) {
            let Ok(count) = count.parse::<u64>() else { break };
            *taken.entry(*core).or_default() += count;
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_counted_and_the_processor_is_not() {
        let text = "           CPU0       CPU2       \n 24:          1         70  IO-APIC   5-edge      ACPI:Ged\n \
                    36:          0    5542345 PCI-MSIX-0000:00:02.0   1-edge      virtio1-req.0\n\
                    LOC:   99999999         13   Local timer interrupts\nERR:          0\n";
        assert_eq!(parse(text), HashMap::from([(0, 1), (2, 5_542_415)]));
    }

    #[test]
    fn what_is_not_understood_counts_nothing() {
        for text in ["", "CPU0\n", "CPU0 CPU1\n 7: many few\n 8\n", "no cores\n 1: 2 3\n"] {
            assert_eq!(parse(text).values().sum::<u64>(), 0, "{text:?}");
        }
    }
}
