package config

import (
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/yamltree"
)

func (p *parser) coexist(c *Coexist, e yamltree.Entry) {
	if e.Value.Kind != yamltree.Map {
		p.add(problem.EConfig, e.Line, "coexist holds "+e.Value.Kind.String()+" where keys are expected", "write coexist: {docker: manage}")
		return
	}
	p.path = "coexist"
	defer func() { p.path = "" }()
	for _, kv := range e.Value.Entries {
		switch kv.Key {
		case "docker":
			p.word(kv, &c.Docker, Manage, Warn, Ignore)
		case "ufw":
			p.word(kv, &c.UFW, Manage, Warn, Ignore)
		case "firewalld":
			p.word(kv, &c.Firewalld, Manage, Warn, Ignore)
		default:
			p.unknown(kv, []string{"docker", "ufw", "firewalld"})
		}
	}
}
