package lab

import (
	"context"
	"regexp"
	"strings"
)

// kernelState prints all that slash32 could leave behind on a host.
const kernelState = `
for show in "-d link show" "-d address show" "-d -4 route show table all" "-d -6 route show table all" \
	"-4 rule show" "-6 rule show" "neighbour show nud permanent"; do
	echo "# ip $show"
	ip $show
done
echo "# nft list ruleset"
nft list ruleset
echo "# files"
find /run/slash32 /var/lib/slash32 2>/dev/null | sort
echo "# processes"
ps -e -o comm= | grep -E '^(slash32|qemu)' | sort
true
`

// What differs between two dumps of the same state.
var volatile = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`(?m)^\d+: `), ""},                                     // interface indices
	{regexp.MustCompile(`\b(hello|tcn|topology_change|gc)_timer +[\d.]+`), ""}, // of bridges
	{regexp.MustCompile(`\bcounter packets \d+ bytes \d+`), "counter"},
	{regexp.MustCompile(`\bvnet\d+\b`), "vnet"}, // taps
	{regexp.MustCompile(` dynamic| expires \d+sec|valid_lft \w+ preferred_lft \w+`), ""},
	{regexp.MustCompile(`(?m) +$`), ""},
}

// KernelState is the node's links, addresses, routes, rules, permanent
// neighbours and nftables ruleset, with the files and processes of slash32, as
// text without what changes by itself: for comparison.
func (n *Node) KernelState(ctx context.Context) (string, error) {
	s, err := n.Exec(ctx, "sh", "-c", kernelState)
	if err != nil {
		return "", err
	}
	for _, v := range volatile {
		s = v.pattern.ReplaceAllString(s, v.with)
	}
	return strings.TrimSpace(s) + "\n", nil
}
