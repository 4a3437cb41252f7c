//! What a process holds, counted: descriptors, threads, mappings, memory.

/// A count of everything that a case could forget to give back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holdings {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Kilobytes of address space.
    pub address_space: u64,
    /// Kilobytes of memory that is nobody else's.
    pub memory: u64,
}

fn entries(folder: &str) -> usize {
    std::fs::read_dir(folder).map_or(0, |d| d.count())
}

impl Holdings {
    /// As it is now.
    pub fn now() -> Holdings {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kilobytes = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name));
            line.and_then(|l| l.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap_or(0)
        };
        Holdings {
            descriptors: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
            address_space: kilobytes("VmSize:"),
            memory: kilobytes("RssAnon:"),
        }
    }

    /// As it is when threads that are ending have ended.
    pub fn settled(like: &Holdings) -> Holdings {
        for _ in 0..200 {
            let now = Holdings::now();
            if now.threads <= like.threads && now.descriptors <= like.descriptors {
                return now;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Holdings::now()
    }
}
