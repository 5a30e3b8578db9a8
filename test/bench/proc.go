package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// field reads the number behind "name:" in a file of /proc.
func field(path, name string) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), name+":"); ok {
			return strconv.Atoi(strings.Fields(v)[0])
		}
	}
	return 0, fmt.Errorf("read %s: no field %s", path, name)
}

// privateDirty is a process's private dirty memory in KiB.
func privateDirty(pid int) (int, error) {
	return field(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Private_Dirty")
}

func threads(pid int) (int, error) { return field(fmt.Sprintf("/proc/%d/status", pid), "Threads") }

// cpuTicks is user and system time of a process in clock ticks (1/100 s).
func cpuTicks(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	u, err := strconv.Atoi(f[11])
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	s, err := strconv.Atoi(f[12])
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	return u + s, nil
}

// memoryCgroup makes a memory cgroup (version 1 or 2) and returns its folder
// and a function that reads anonymous plus kernel memory in KiB.
func memoryCgroup(name string) (string, func() (int, error), error) {
	const v1 = "/sys/fs/cgroup/memory"
	if _, err := os.Stat(filepath.Join(v1, "memory.kmem.usage_in_bytes")); err == nil {
		dir := filepath.Join(v1, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", nil, fmt.Errorf("make memory cgroup: %w", err)
		}
		return dir, func() (int, error) {
			rss, err := statWord(filepath.Join(dir, "memory.stat"), "rss")
			if err != nil {
				return 0, err
			}
			k, err := os.ReadFile(filepath.Join(dir, "memory.kmem.usage_in_bytes"))
			if err != nil {
				return 0, fmt.Errorf("read kernel memory: %w", err)
			}
			kmem, err := strconv.Atoi(strings.TrimSpace(string(k)))
			return (rss + kmem) / 1024, err
		}, nil
	}
	const v2 = "/sys/fs/cgroup"
	c, err := os.ReadFile(filepath.Join(v2, "cgroup.subtree_control"))
	if err != nil || !slices.Contains(strings.Fields(string(c)), "memory") {
		return "", nil, fmt.Errorf("no memory cgroup here")
	}
	dir := filepath.Join(v2, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", nil, fmt.Errorf("make memory cgroup: %w", err)
	}
	return dir, func() (int, error) {
		anon, err := statWord(filepath.Join(dir, "memory.stat"), "anon")
		if err != nil {
			return 0, err
		}
		kernel, err := statWord(filepath.Join(dir, "memory.stat"), "kernel")
		return (anon + kernel) / 1024, err
	}, nil
}

func statWord(path, name string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.Atoi(strings.TrimSpace(v))
		}
	}
	return 0, fmt.Errorf("read %s: no word %s", path, name)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	if len(s)%2 == 1 {
		return s[len(s)/2]
	}
	return (s[len(s)/2-1] + s[len(s)/2]) / 2
}

func quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	return s[min(len(s)-1, int(q*float64(len(s))))]
}
