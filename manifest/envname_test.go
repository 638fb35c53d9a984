package manifest

import "testing"

func TestValidEnvName(t *testing.T) {
	for name, want := range map[string]bool{
		"A": true, "_": true, "a1_B": true, "": false, "1A": false, "A-B": false, "A B": false, "A=": false,
		"A\n": false, "\nA": false, "É": false, "A.B": false,
	} {
		if got := ValidEnvName(name); got != want {
			t.Errorf("ValidEnvName(%q) = %v", name, got)
		}
	}
}
