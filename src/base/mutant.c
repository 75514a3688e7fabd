/* See mutant.h. */
#include "base/mutant.h"

#ifdef KILN_MUTANTS
enum mutant mutant_active = MUTANT_NONE;
#endif
