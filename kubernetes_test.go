package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestKubernetes: the configurations in packaging/kubernetes are ones that berth takes, with
// users and certificate as the kubelet mounts Secrets: links to links, owned by root and
// readable to a group. What has to fit together there does.
func TestKubernetes(t *testing.T) {
	data, err := os.ReadFile("packaging/kubernetes/berth.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	dir := t.TempDir()
	secret := func(name string, files map[string]string) string {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Join(at, "..2026_01_01"), 0o755); err != nil {
			t.Fatal(err)
		}
		os.Symlink("..2026_01_01", filepath.Join(at, "..data"))
		for file, content := range files {
			if err := os.WriteFile(filepath.Join(at, "..2026_01_01", file), []byte(content), 0o440); err != nil {
				t.Fatal(err)
			}
			os.Symlink("..data/"+file, filepath.Join(at, file))
		}
		return at
	}
	pair, err := testCertificate()
	if err != nil {
		t.Fatal(err)
	}
	homes := filepath.Join(dir, "homes")
	mounts := strings.NewReplacer(
		"/etc/berth-users", secret("users", map[string]string{"ann.toml": "password = \"" + testHash + "\"\nquota = \"filesystem\"\nhome = \"" + homes + "/ann\"\n"}),
		"/etc/berth-tls", secret("tls", map[string]string{"tls.crt": string(pair[0]), "tls.key": string(pair[1])}),
		"/var/lib/berth", filepath.Join(dir, "state"))
	files := regexp.MustCompile(`(?m)^  (berth-\d\.toml): \|\n((?:    .*\n|\n)+)`).FindAllStringSubmatch(text, -1)
	if len(files) != 2 || !strings.Contains(text, "replicas: 2") || !strings.Contains(text, `"/etc/berth/$(POD_NAME).toml"`) {
		t.Fatalf("%d configurations for the pods", len(files))
	}
	for _, m := range files {
		file := filepath.Join(dir, m[1])
		if err := os.WriteFile(file, []byte(mounts.Replace(regexp.MustCompile(`(?m)^    `).ReplaceAllString(m[2], ""))), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, out, errs := cli(t, "check", "--config", file); code != exitOK || errs != "" {
			t.Errorf("%s: %d, %s%s", m[1], code, out, errs)
		}
		cfg, err := loadConfig(file)
		if err != nil {
			t.Fatal(err)
		}
		pod := strings.TrimSuffix(m[1], ".toml")
		if cfg.Server.Name != pod || !strings.HasPrefix(cfg.Passive.Address, pod+".") {
			t.Errorf("%s is for %s at %s", m[1], cfg.Server.Name, cfg.Passive.Address)
		}
		if most := cfg.Server.Drain.std() + drainCourtesy + 5*time.Second; most >= 90*time.Second || !strings.Contains(text, "terminationGracePeriodSeconds: 90\n") || !strings.Contains(text, "preStop: {sleep: {seconds: 5}}\n") {
			t.Errorf("%s ends within %v, and is killed before", m[1], most)
		}
		// Each data port is in the pod's own Service.
		if n := len(regexp.MustCompile(`name: data-\d, port: 5000\d}`).FindAllString(text, -1)); cfg.Passive.Ports.String() != "50000-50003" || n != 2*4 {
			t.Errorf("ports %v, and %d in Services", cfg.Passive.Ports, n)
		}
	}
	// Metrics, which name users, are not for everybody; files are.
	_, policy, _ := strings.Cut(text, "kind: NetworkPolicy\n")
	policy, _, _ = strings.Cut(policy, "\n---")
	open, metrics, _ := strings.Cut(policy, "- from:")
	for part, want := range map[string]string{open: "port: 2121} port: 50000, endPort: 50003}", metrics: "port: 9621}"} {
		if got := strings.Join(regexp.MustCompile(`port: .*}`).FindAllString(part, -1), " "); got != want {
			t.Errorf("the policy has %q, want %q", got, want)
		}
	}
	if image := regexp.MustCompile(`(?m)^ *image: (.*)$`).FindStringSubmatch(text); image == nil || !regexp.MustCompile(`:\d+\.\d+\.\d+$`).MatchString(image[1]) {
		t.Errorf("the image is %q: two pods may have two versions of it", image)
	}
}
