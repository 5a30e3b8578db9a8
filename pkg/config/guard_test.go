package config_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/pkg/config"
)

func TestServices(t *testing.T) {
	type open struct {
		Services []config.Service
		Open     bool
	}
	for text, want := range map[string]open{
		"{}":                               {},
		"host_services: none":              {},
		"host_services: []":                {},
		"host_services: all":               {Open: true},
		"host_services: tcp/22":            {Services: []config.Service{{Proto: config.ProtoTCP, Port: 22}}},
		"host_services: [tcp/22, udp/53]":  {Services: []config.Service{{Proto: config.ProtoTCP, Port: 22}, {Proto: config.ProtoUDP, Port: 53}}},
		"host_services: tcp/443 udp/65535": {Services: []config.Service{{Proto: config.ProtoTCP, Port: 443}, {Proto: config.ProtoUDP, Port: 65535}}},
	} {
		if text != "{}" {
			text = "{" + text + "}"
		}
		c, ps := config.Parse("f", []byte("networks: {default: "+text+"}"))
		n := c.Networks["default"]
		if d := cmp.Diff(want, open{n.Services, n.Open}); d != "" || len(ps) > 0 {
			t.Errorf("%s: %v\n%s", text, ps, d)
		}
	}
}

func TestLocalPrefixes(t *testing.T) {
	c, ps := config.Parse("f", []byte("local_prefixes: [192.168.7.0/24, 10.1.0.0/16, 10.0.0.0/8, 192.0.2.1, 192.0.2.1/32, '2001:db8:1::/48', '2001:db8::/32']\nlog_drops: false"))
	var got []string
	for _, p := range c.LocalPrefixes {
		got = append(got, p.String())
	}
	want := []string{"10.0.0.0/8", "192.0.2.1/32", "192.168.7.0/24", "2001:db8::/32"}
	if d := cmp.Diff(want, got); d != "" || len(ps) > 0 || c.LogDrops {
		t.Errorf("%v, log_drops %v\n%s", ps, c.LogDrops, d)
	}
	if d := config.Default(); !d.LogDrops || d.LocalPrefixes != nil || d.Networks["default"].Open {
		t.Errorf("defaults: %+v", d)
	}
	for _, bad := range []string{"::/0", "0.0.0.0/0", "10.0.0.1/8", "::ffff:10.0.0.0/104", "10.0.0.0/33", "fe80::1%eth0"} {
		c, ps := config.Parse("f", []byte("local_prefixes: ['2001:db8::/32', '"+bad+"']"))
		if len(ps) != 1 || c.LocalPrefixes != nil {
			t.Errorf("%s: %v, %v", bad, ps, c.LocalPrefixes)
		}
	}
}
