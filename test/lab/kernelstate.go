package lab

import (
	"context"
	"regexp"
	"slices"
	"strings"
)

// kernelState prints all objects in the kernel that slash32 could leave behind.
const kernelState = `
for show in "-d link show" "-d address show"; do
	echo "# ip $show"
	for dev in $(ls /sys/class/net | sort -V); do # not by index, which a link that is made again has another of
		ip $show dev $dev
	done
done
for show in "-d -4 route show table all" "-d -6 route show table all" \
	"-4 rule show" "-6 rule show" "neighbour show nud permanent"; do
	echo "# ip $show"
	ip $show
done
echo "# nft list ruleset"
nft list ruleset
`

// traces prints all else that slash32 could leave behind. What was counted stays.
const traces = `
find /run/slash32 /var/lib/slash32 -mindepth 1 ! -path /var/lib/slash32/counters.json ! -path /var/lib/slash32/counters.d 2>/dev/null | sort
ps -e -o comm= | grep -E '^(slash32|qemu)' | sort
true
`

// What differs between two dumps of the same state.
var (
	volatile = []struct {
		pattern *regexp.Regexp
		with    string
	}{
		{regexp.MustCompile(`(?m)^\d+: `), ""}, // interface indices
		{regexp.MustCompile(`\b\w+_timer +[\d.]+`), ""},
		{regexp.MustCompile(`\bcounter packets \d+ bytes \d+`), "counter"},
		{regexp.MustCompile(`\bvnet\d+\b`), "vnet"}, // taps
		{regexp.MustCompile(` dynamic\b| expires \d+sec|valid_lft \w+ preferred_lft \w+`), ""},
		{regexp.MustCompile(`(?m)^anycast .*\n`), ""}, // come with forwarding, which stays on
		{regexp.MustCompile(`(?m) +$`), ""},
	}
	nftElements = regexp.MustCompile(`(?s)elements = \{ (.*?) \}`)
	unordered   = regexp.MustCompile(`(?m)^# ip (?:neighbour|-d -[46] route).*\n((?:[^#\n].*\n)+)`)
)

// KernelState is the node's links, addresses, routes, rules, permanent
// neighbours and nftables ruleset as text, in a fixed order and without what
// changes by itself: for comparison.
func (n *Node) KernelState(ctx context.Context) (string, error) {
	s, err := n.Exec(ctx, "sh", "-c", kernelState)
	if err != nil {
		return "", err
	}
	for _, v := range volatile {
		s = v.pattern.ReplaceAllString(s, v.with)
	}
	// The kernel lists these in the order of hashes, or of making.
	s = sortWithin(s, nftElements, ",")
	s = sortWithin(s, unordered, "\n")
	return strings.TrimSpace(s) + "\n", nil
}

// sortWithin sorts the items of the list that is the pattern's first group.
func sortWithin(s string, pattern *regexp.Regexp, separator string) string {
	return pattern.ReplaceAllStringFunc(s, func(match string) string {
		list := pattern.FindStringSubmatch(match)[1]
		items := strings.Split(list, separator)
		for i := range items {
			items[i] = strings.TrimSpace(items[i])
		}
		slices.Sort(items)
		return strings.Replace(match, list, strings.TrimSpace(strings.Join(items, strings.TrimSpace(separator)+"\n"))+"\n", 1)
	})
}

// Traces are the files of slash32 and the processes of slash32 and QEMU in the
// lab, one a line.
func (l *Lab) Traces(ctx context.Context) (string, error) {
	return l.HV.Exec(ctx, "sh", "-c", traces)
}
