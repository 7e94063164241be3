// These tests hold docs/operations.md: that its links lead somewhere, and that what it
// tells people to type is what the program takes.

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// markdownAnchors are what the headings of a page can be reached by, as GitHub has it.
func markdownAnchors(text string) map[string]bool {
	anchors := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		name := regexp.MustCompile(`[^\pL\pN _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		anchors[strings.ReplaceAll(name, " ", "-")] = true
	}
	return anchors
}

func TestOperationsLinks(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	links := regexp.MustCompile(`\]\(([^)]+)\)`).FindAllStringSubmatch(string(page), -1)
	if len(links) < 20 {
		t.Fatalf("only %d links were found", len(links))
	}
	for _, m := range links {
		file, anchor, _ := strings.Cut(m[1], "#")
		to := filepath.Join("docs", file)
		if file == "" {
			to = "docs/operations.md"
		}
		text, err := os.ReadFile(to)
		if info, serr := os.Stat(to); serr == nil && info.IsDir() {
			continue
		}
		if err != nil || anchor != "" && !markdownAnchors(string(text))[anchor] {
			t.Errorf("(%s) leads nowhere: %v", m[1], err)
		}
	}
}

// TestOperationsExamples: what the page has people copy is what the package brings.
func TestOperationsExamples(t *testing.T) {
	t.Parallel()
	const installed = "/usr/share/doc/berth/examples/"
	page, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	build, err := os.ReadFile("packaging/deb/build")
	if err != nil {
		t.Fatal(err)
	}
	files := regexp.MustCompile(installed+`([\w./-]+\w)`).FindAllStringSubmatch(string(page), -1)
	if len(files) < 5 {
		t.Fatalf("only %d examples were found", len(files))
	}
	for _, m := range files {
		dir, rest, _ := strings.Cut(m[1], "/")
		there, put := false, strings.Contains(string(build), " docs/"+m[1])
		for _, from := range []string{"docs/" + m[1], "packaging/" + m[1], filepath.Join("packaging", dir, "examples", rest)} {
			_, err := os.Stat(from)
			there = there || err == nil
		}
		if put = put || strings.Contains(string(build), " packaging/"+dir); !there || !put {
			t.Errorf("%s: there: %t, packaging/deb/build puts it there: %t", m[0], there, put)
		}
	}
}

func TestOperationsCommands(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, m := range regexp.MustCompile("(?m)(?:^[#$] |&& |`)berth ([a-z]+(?: [^&`|\n]*)?)").FindAllStringSubmatch(string(page), -1) {
		words := strings.Fields(m[1])
		if strings.HasSuffix(m[1], ":") || words[0] == "doctor" && findVerb("doctor") == nil { // comes with its own file
			continue
		}
		help := []string{words[0], "-h"}
		if words[0] == "user" && len(words) > 1 {
			help = []string{"user", words[1], "-h"}
		}
		code, out, _ := cli(t, help...)
		if code != exitOK {
			t.Errorf("berth %s: there is no such verb", m[1])
			continue
		}
		seen++
		for _, w := range words {
			if strings.HasPrefix(w, "--") && !strings.Contains(out, w) {
				t.Errorf("berth %s: there is no option %s", m[1], w)
			}
		}
	}
	if seen < 25 {
		t.Errorf("only %d commands were found", seen)
	}
	for _, m := range regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		if _, errs := parseConfig("docs/operations.md", []byte(m[1])); len(errs) > 0 && !strings.Contains(errs.Error(), "no such file") {
			t.Errorf("%s: %v", m[1], errs)
		}
	}
}
